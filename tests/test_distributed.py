"""Several processes fit one guide: the steps of one with all their particles."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch.testing import assert_close

from pyroflows import fit_guide

from . import _ranks

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(),
        reason="torch is built without gloo",
    ),
]


def launch(task, folder, size=2):
    """Run a task of ``_ranks`` by torchrun, on a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={size}", "-m", "tests._ranks", task, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def read(folder, size=2):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = launch("all_cases", folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return read(folder)


@pytest.mark.parametrize("case", list(_ranks.CASES))
def test_two_processes_take_the_steps_of_one_with_twice_the_particles(results, case):
    expected = _ranks.summary(_ranks.fit(case, 2))
    first, second = (r[case] for r in results)
    assert first["processes"] == 2
    assert first["losses"] == second["losses"]
    assert first["params"] == second["params"]  # bit for bit: ranks never drift apart
    assert_close(*(torch.tensor(r["losses"]) for r in (first, expected)), rtol=1e-9, atol=1e-9)
    assert_close(*(torch.tensor(r["params"]) for r in (first, expected)), rtol=1e-6, atol=1e-6)
    assert first["nonfinite"] == expected["nonfinite"]
    if case == "holed":
        assert expected["nonfinite"] > 0
        assert torch.tensor(expected["losses"]).isfinite().all()  # some draws are lost, not all


def test_the_verdict_is_that_of_rank_0(results):
    first, second = (r["diagnosed"] for r in results)
    assert first["verdict"] == second["verdict"]
    assert first["verdict"][0] in ("usable", "reweight")
    assert first["seconds"] == second["seconds"]


def test_ranks_stop_at_the_same_step_by_one_clock(results):
    first, second = (r["time"] for r in results)
    assert first["reason"] == second["reason"] == "time_budget"
    assert first["losses"] == second["losses"]
    assert first["params"] == second["params"]


def test_guides_of_pyro_share_their_gradients_and_draw_apart(results):
    first, second = (r["pyro"] for r in results)
    assert first["losses"] == second["losses"]
    assert first["params"] == second["params"]


def test_each_process_may_fit_on_its_own(results):
    first, second = (r["apart"] for r in results)
    assert first["processes"] == second["processes"] == 1
    assert first["losses"] != second["losses"]


def test_processes_that_fit_something_else_are_refused(tmp_path):
    launch("disagree", tmp_path)
    for rank in range(2):
        text = (tmp_path / f"{rank}.txt").read_text()
        assert "settings" in text
        assert "on rank 0" in text
        assert "on rank 1" in text
        assert "distributed=False to let each fit on its own" in text


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """What is left when rank 1 was killed: the output, and a folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("lost")
    return launch("lose", folder), folder


def test_a_killed_rank_ends_the_others_with_an_error_and_a_checkpoint(lost):
    done, folder = lost
    assert done.returncode != 0
    message = (folder / "0.txt").read_text()
    assert message.startswith("LostRank: fit_guide: rank 0 stopped after 13 steps because")
    assert "rank 1 of 2 no longer answers" in message
    assert f"goes on from the checkpoint {str(folder / 'fit.pt')!r} of 13 steps" in message
    assert message.partition(": ")[2][:40] in done.stderr
    assert not (folder / "1.txt").exists()


@pytest.mark.parametrize("size", [1, 2])
def test_one_process_or_two_go_on_from_the_checkpoint(lost, size, tmp_path):
    shutil.copy(lost[1] / "fit.pt", tmp_path)
    alone = torch.tensor(_ranks.fit("tails", 2).losses)
    if size == 1:
        losses = _ranks.fit("tails", 2, checkpoint=tmp_path / "fit.pt").losses
    else:
        done = launch("resume", tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        first, second = read(tmp_path)
        assert first == second
        losses = first["losses"]
    assert_close(torch.tensor(losses), alone, rtol=1e-9, atol=1e-9)


def test_several_processes_are_asked_for_where_there_is_one():
    with pytest.raises(ValueError, match=r"not initialised.*torchrun --nproc-per-node N script"):
        _ranks.fit("tails", 1, distributed=True)
    with pytest.raises(ValueError, match="True, False or 'auto', got 'all'"):
        _ranks.fit("tails", 1, distributed="all")
    assert fit_guide.__doc__.count("torchrun") == 1
