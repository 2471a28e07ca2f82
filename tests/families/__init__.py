"""The cases of each family, a module each.

A module has ``builders()``, which returns named callables ``(dim, *, context_dim=0) -> Bijector``:
each is a case of its own, free and conditional. A registered flow is ``"flow:<its name>"``. It may
have ``EXCEPT``: by law, the names of its cases that the law leaves out, each with its reason; and
``TOLERANCES``: by law and name of a case, a tolerance wider than the bar of all, and its reason.
"""
