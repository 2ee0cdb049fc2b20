"""Runs of a sweep: their names, their order, and what ends it."""

import os
import signal

import pytest

from jobs.sweep import main, runs_of_sweep
from lgd import exits, launch

OPTIONS = ["--nnodes=2", "--rdzv-endpoint=node7:20100", "--rdzv-id=job", "--max-restarts", "3"]


@pytest.fixture
def launched(monkeypatch):
    """Stand in for the launcher: note its arguments, end with the codes that `codes` holds (else 0)."""

    class Launched(list):
        codes = ()

    calls = Launched()

    def launch_main(argv):
        calls.append(list(argv))
        return calls.codes[len(calls) - 1] if len(calls) <= len(calls.codes) else exits.DONE

    monkeypatch.setattr(launch, "main", launch_main)
    return calls


def test_every_recipe_with_every_seed():
    runs = runs_of_sweep(["configs/retinanet/r50_1x_ms.yaml", "./configs/demo.yaml"], ["1", "22"])
    assert runs == [
        ("retinanet-r50_1x_ms-seed1", ["--config-file", "configs/retinanet/r50_1x_ms.yaml", "SEED", "1"]),
        ("retinanet-r50_1x_ms-seed22", ["--config-file", "configs/retinanet/r50_1x_ms.yaml", "SEED", "22"]),
        ("demo-seed1", ["--config-file", "./configs/demo.yaml", "SEED", "1"]),
        ("demo-seed22", ["--config-file", "./configs/demo.yaml", "SEED", "22"]),
    ]


def test_recipes_keep_their_seed_unless_told():
    assert runs_of_sweep(["/x/y/a/b.yaml"], []) == [("a-b", ["--config-file", "/x/y/a/b.yaml"])]


def test_names_of_recipes_lack_an_ending_which_is_no_part_of_a_version():
    runs = runs_of_sweep(["fcos/r50_2x_ms_lgd", "configs/demo", "a/v1.5", "a/v1.6.yml"], [])
    assert [name for name, _ in runs] == ["fcos-r50_2x_ms_lgd", "demo", "a-v1.5", "a-v1.6"]
    assert runs[0][1] == ["--config-file", "fcos/r50_2x_ms_lgd"]


@pytest.mark.parametrize(
    ("configs", "seeds", "message"),
    [
        ([], ["1"], "at least one recipe"),
        (["a.yaml"], ["-1"], "seeds must be whole numbers, not '-1'"),
        (["a.yaml", "configs/a.yaml"], [], "two runs of the sweep would write to 'a'"),
    ],
)
def test_sweeps_that_cannot_be(configs, seeds, message):
    with pytest.raises(ValueError, match=message):
        runs_of_sweep(configs, seeds)


def test_one_after_another_each_at_a_port_of_its_own(launched, capsys):
    code = main(["--configs=a.yaml,b.yaml", "--seeds=7", "--output=out", *OPTIONS, "--", "A", "1"])
    assert code == exits.DONE
    assert launched == [
        [
            "--nnodes=2", "--max-restarts", "3", f"--rdzv-endpoint=node7:{20100 + number}",
            f"--rdzv-id=job-{number}", "--", "A", "1", "--config-file", f"{name}.yaml", "SEED", "7",
            "--resume", "OUTPUT_DIR", f"out/{name}-seed7",
        ]
        for number, name in enumerate("ab")
    ]  # fmt: skip
    assert "run 2 of 2: out/b-seed7" in capsys.readouterr().out


def test_any_free_port_stays_so(launched):
    main(["--configs=a.yaml,b.yaml"])
    assert all("--rdzv-endpoint=localhost:0" in argv for argv in launched)


def test_a_run_that_is_asked_to_leave_ends_the_sweep(launched):
    launched.codes = (exits.DONE, exits.RUN_AGAIN)
    assert main(["--configs=a.yaml,b.yaml,c.yaml"]) == exits.RUN_AGAIN
    assert len(launched) == 2


def test_a_signal_between_two_runs_ends_the_sweep(monkeypatch):
    monkeypatch.setattr(launch, "main", lambda argv: os.kill(os.getpid(), signal.SIGTERM) or exits.DONE)
    assert main(["--configs=a.yaml,b.yaml"]) == exits.RUN_AGAIN


def test_after_a_run_that_fails_the_others_are_trained(launched, capsys):
    launched.codes = (exits.DONE, exits.USER_ERROR, 1)
    assert main(["--configs=a.yaml,b.yaml,c.yaml,d.yaml"]) == exits.USER_ERROR
    assert len(launched) == 4
    assert "run b ended with exit code 2" in capsys.readouterr().err


def test_wrong_seed_is_a_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--configs=a.yaml", "--seeds=x"])
    assert ended.value.code == exits.USER_ERROR
    assert "seeds must be whole numbers, not 'x'" in capsys.readouterr().err
