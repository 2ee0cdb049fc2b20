"""AppDefs of the components, and what arrives at the program through every layer of quoting."""

import json
import subprocess
import sys
from string import Template

import pytest
from torchx.specs.file_linter import validate

from jobs import appdef, components
from jobs.appdef import Elastic, Machine, Size, elastic_role, mount_options, quote
from tests.training import REPOSITORY

PATH = REPOSITORY / "jobs" / "components.py"
AWKWARD = [
    "('coco:my data:train',)", "it's", 'say "yes"', "$HOME", "${HOME}", "$$", "$(HOME)", "`id`", "a;b",
    "a\\nb", "*", "", "${app_id}", "${rank0_env}", "tab\there", "line\nbreak", "#x", "!x", "-1",
    "--resume", "--", "é",
]  # fmt: skip


UNREAD = {"config": "c.yaml", "check": False}
"""A recipe that only the image has."""


def role_of(app):
    (role,) = app.roles
    return role


def script_of(role):
    assert role.entrypoint == "bash"
    flag, script = role.args
    assert flag == "-c"
    return script


def substitute(text, rank0_env="RANK0"):
    """What TorchX does to arguments."""
    return Template(text).safe_substitute(rank0_env=rank0_env, app_id="app-1", replica_id="0", img_root="")


def kubernetes_expand(text, variables):
    """What Kubernetes does to arguments: $(NAME) of known variables, and $$ to $."""
    result, position = "", 0
    while position < len(text):
        rest = text[position:]
        name = rest[2:].split(")")[0] if rest.startswith("$(") and ")" in rest else None
        if rest.startswith("$$"):
            result, position = result + "$", position + 2
        elif name in variables:
            result, position = result + variables[name], position + len(name) + 3
        else:
            result, position = result + rest[0], position + 1
    return result


def run_script(role, tmp_path, *, expand=lambda text: text, **environment):
    """Run a role's line with a program in place of Python that tells what it was given."""
    told, stub = tmp_path / "told.json", tmp_path / "python3"
    stub.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], dict(os.environ)], open({str(told)!r}, 'w'))\n"
    )
    stub.chmod(0o755)
    script = expand(substitute(script_of(role))).replace(sys.executable, "/nowhere/python")
    subprocess.run(
        ["bash", "-c", script],
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **role.env, **environment},
    )
    return json.loads(told.read_text())


def launch_options(words):
    own = words[2 : words.index("--")]
    return dict(word.removeprefix("--").split("=", 1) for word in own)


@pytest.mark.parametrize("name", ["train", "evaluate", "preflight", "sweep", "tensorboard"])
def test_torchx_accepts_the_component(name):
    assert validate(*linter_arguments(name)) == []


def linter_arguments(name):
    from inspect import signature

    # Nightlies ask for the validators too; None stands for their own.
    return (str(PATH), name, *([None] if "validators" in signature(validate).parameters else []))


@pytest.mark.parametrize("word", AWKWARD)
def test_quoted_words_survive_bash_torchx_and_kubernetes(word):
    line = f"printf '%s\\0' {quote(word, 'end')}"
    for text in (line, kubernetes_expand(substitute(line), {"HOME": "/wrong"})):
        output = subprocess.run(["bash", "-c", text], capture_output=True, check=True, text=True).stdout
        assert output.split("\0")[:-1] == [word, "end"]


def test_settings_arrive_as_they_were_given(tmp_path):
    role = role_of(components.train(*AWKWARD, config="my recipes/a.yaml", check=False, j="1x2"))
    words, _ = run_script(role, tmp_path, expand=lambda text: kubernetes_expand(text, {"HOME": "/wrong"}))
    assert words[:2] == ["-m", "lgd.launch"]
    assert words[words.index("--") + 1 :] == ["--config-file", "my recipes/a.yaml", "--resume", *AWKWARD]


def test_train_on_one_node(tmp_path):
    role = role_of(components.train(**UNREAD, j="8", max_restarts=2, rdzv_timeout=60, log_dir="logs"))
    words, environment = run_script(role, tmp_path)
    assert launch_options(words) == {
        "nnodes": "1", "nproc-per-node": "8", "rdzv-backend": "c10d", "rdzv-endpoint": "localhost:0",
        "rdzv-id": "app-1", "rdzv-conf": "join_timeout=60,timeout=60", "max-restarts": "2",
        "log-dir": "logs",
    }  # fmt: skip
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
    assert (role.num_replicas, role.max_retries, role.port_map) == (1, 3, {})
    assert (role.resource.gpu, role.resource.cpu, role.resource.memMB) == (8, 48, 131072)


def test_nodes_meet_at_the_first_one_on_a_port_of_the_job(tmp_path):
    role = role_of(components.train(**UNREAD, j="2x8"))
    words, _ = run_script(role, tmp_path, RANK0="node7")
    host, port = launch_options(words)["rdzv-endpoint"].split(":")
    assert host == "node7"
    assert 20000 <= int(port) < 30000
    again, _ = run_script(role, tmp_path, RANK0="node7")
    assert words == again
    other, _ = run_script(role, tmp_path, expand=lambda text: text.replace("app-1", "app-2"), RANK0="node7")
    assert launch_options(other)["rdzv-endpoint"] != launch_options(words)["rdzv-endpoint"]
    assert role.num_replicas == 2


def test_port_may_be_given(tmp_path):
    role = role_of(components.train(**UNREAD, j="2x8", rdzv_port=29400))
    words, _ = run_script(role, tmp_path, RANK0="node7")
    assert launch_options(words)["rdzv-endpoint"] == "node7:29400"
    assert role.port_map == {"c10d": 29400}


def test_unknown_first_node_ends_the_replica_with_a_message():
    role = role_of(components.train(**UNREAD, j="2x8"))
    done = subprocess.run(
        ["bash", "-c", substitute(script_of(role))], capture_output=True, text=True, check=False, env={}
    )
    assert done.returncode != 0
    assert "RANK0: is not set, so the first node is not known" in done.stderr


def test_environment_of_the_seed_and_more(tmp_path):
    role = role_of(
        components.train(
            **UNREAD, nccl_ib_disable="1", nccl_socket_ifname="ib0,ib1", nccl_tree_threshold="0",
            gloo_socket_ifname="ib0",
            env={"NCCL_DEBUG": "INFO", "NOTE": 'it\'s "$5", ok', "GLOO_SOCKET_IFNAME": "x"},
        )
    )  # fmt: skip
    _, environment = run_script(role, tmp_path)
    wanted = {
        "NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "ib0,ib1", "NCCL_TREE_THRESHOLD": "0",
        "GLOO_SOCKET_IFNAME": "x", "NCCL_DEBUG": "INFO", "NOTE": 'it\'s "$5", ok',
    }  # fmt: skip
    assert {key: environment[key] for key in wanted} == wanted
    assert role.env["NCCL_IB_DISABLE"] == "1"
    # A comma would end the value on SLURM.
    assert not {"NCCL_SOCKET_IFNAME", "NOTE"} & set(role.env)


def test_interpreter_is_this_environment_where_the_node_has_it(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/env")
    monkeypatch.setattr(sys, "executable", sys.executable)
    line = appdef._interpreter()
    shown = subprocess.run(
        ["bash", "-c", f'{line}; echo "$python"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == sys.executable
    monkeypatch.setattr(sys, "executable", "/not here/bin/python")
    line = appdef._interpreter()
    shown = subprocess.run(
        ["bash", "-c", f'{line}; echo "$python"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "python3"
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert appdef._interpreter() == "python=python3"


def test_data_and_output_are_mounted_and_set(tmp_path):
    role = role_of(components.train("A", "1", **UNREAD, data="/nfs/data", output="claim:/runs/a"))
    data, output = role.mounts
    assert (data.src_path, data.dst_path, data.read_only) == ("/nfs/data", "/nfs/data", True)
    assert (output.src, output.dst_path, output.read_only) == ("claim", "/runs/a", False)
    words, _ = run_script(role, tmp_path)
    assert words[-6:] == ["DATASETS.ROOT", "/nfs/data", "OUTPUT_DIR", "/runs/a", "A", "1"]


def test_further_mounts_follow_torchx():
    mounts = ["type=bind", "src=/a", "dst=/b", "readonly"]
    (mount,) = role_of(components.evaluate(**UNREAD, weights="w.pth", mounts=mounts)).mounts
    assert (mount.src_path, mount.dst_path, mount.read_only) == ("/a", "/b", True)


@pytest.mark.parametrize("place", ["claim:relative", "/nfs:", "claim:"])
def test_mount_without_a_path_is_refused(place):
    with pytest.raises(ValueError, match="must be /FOLDER, CLAIM:/PATH or a relative path"):
        mount_options(place, read_only=True)


def test_relative_folders_need_no_mount():
    assert mount_options("outputs/a", read_only=False) == ([], "outputs/a")


def test_resources_as_asked():
    machine = Machine(cpu=4, gpu=0, memory=1000)
    resource = machine.resource(8)
    assert (resource.cpu, resource.gpu, resource.memMB) == (4, 0, 1000)
    named = Machine(named="gpu.small").resource(8)
    assert named.gpu == 1


@pytest.mark.parametrize(
    ("text", "size"), [("2x8", (2, 8)), ("8", (1, 8)), ("1x1", (1, 1)), ("20x8", (20, 8))]
)
def test_sizes(text, size):
    assert Size.parse(text) == Size(*size)


@pytest.mark.parametrize("text", ["", "0x8", "2x", "x8", "2x0", "2*8", "1:2x8", "-1x2", "2x8x1"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match="j must be NODESxPROCESSES such as 2x8"):
        Size.parse(text)


DEMO = f"{REPOSITORY}/configs/demo.yaml"


def refusal(capsys, component, *settings, **options):
    """What `torchx run` ends with, in one line."""
    with pytest.raises(SystemExit) as end:
        component(*settings, **options)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "a\n#SBATCH --uid=0"}, r"image has the character '\n' in it, which would break the line"),
        ({"h": "gpu\r"}, r"h has the character '\r' in it"),
        ({"log_dir": "a\x00"}, r"log_dir has the character '\x00' in it"),
        ({"mounts": ["type=bind", "src=/a\x85", "dst=/b"]}, r"mounts has the character '\x85' in it"),
        ({"env": {"A": "b\u2028c"}}, r"env A has the character '\u2028' in it"),
        ({"env": {"A;B": "c"}}, "env: 'A;B' is no name of a variable"),
        ({"nccl_socket_ifname": "ib0\n"}, r"env NCCL_SOCKET_IFNAME has the character '\n' in it"),
        ({"j": "2*8"}, "j must be NODESxPROCESSES such as 2x8, or PROCESSES, not '2*8'"),
        ({"data": "claim:data"}, "'claim:data' must be /FOLDER, CLAIM:/PATH or a relative path"),
        ({"mounts": ["size=3"]}, "unknown mount option size"),
        ({"rdzv_port": 65536}, "rdzv_port must be in [0, 65535], not 65536"),
        ({"rdzv_timeout": 0}, "rdzv_timeout must be 1 or more, not 0"),
        ({"max_restarts": -1}, "max_restarts must be 0 or more, not -1"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(capsys, options, message):
    assert refusal(capsys, components.train, config=DEMO, **options).startswith(message)


def test_recipe_and_settings_are_read_before_anything_is_queued(capsys, tmp_path):
    wrong = ("SOLVER.MAXITER", "3")
    did_you_mean = "command line: SOLVER.MAXITER is not a setting; did you mean SOLVER.MAX_ITER?"
    assert refusal(capsys, components.train, *wrong, config=DEMO) == did_you_mean
    assert refusal(capsys, components.evaluate, *wrong, config=DEMO, weights="w") == did_you_mean
    assert refusal(capsys, components.sweep, *wrong, configs=[DEMO]) == did_you_mean
    assert refusal(capsys, components.preflight, "--largest", "1", *wrong, config=DEMO) == did_you_mean
    missing = str(tmp_path / "missing.yaml")
    said = refusal(capsys, components.train, config=missing)
    assert said == (
        f"{missing}: no such file or recipe (lgd recipes lists those of the package); where only the image "
        "has it, --check False queues it unread"
    )
    components.train(*wrong, config=missing, check=False)
    components.train("SOLVER.MAX_ITER", "3", config=DEMO, output="/runs/a")


def test_without_resume():
    assert "--resume" not in script_of(role_of(components.train(**UNREAD, resume=False)))


def test_evaluate(tmp_path):
    role = role_of(components.evaluate("A", "1", **UNREAD, weights="w x.pth", j="1x4", output="o"))
    words, _ = run_script(role, tmp_path)
    assert words[words.index("--") + 1 :] == [
        "--config-file", "c.yaml", "--eval-only", "OUTPUT_DIR", "o", "MODEL.WEIGHTS", "w x.pth", "A", "1",
    ]  # fmt: skip
    assert launch_options(words)["max-restarts"] == "0"


def test_preflight(tmp_path):
    role = role_of(components.preflight("--some", "argument", j="2x8"))
    words, _ = run_script(role, tmp_path, RANK0="a")
    assert launch_options(words)["module"] == "lgd.preflight"
    assert words[words.index("--") + 1 :] == ["--some", "argument"]


def test_preflight_of_a_recipe(tmp_path):
    role = role_of(components.preflight("A", "1", **UNREAD, data="/d"))
    words, _ = run_script(role, tmp_path)
    assert words[words.index("--") + 1 :] == ["--config-file", "c.yaml", "DATASETS.ROOT", "/d", "A", "1"]
    assert len(role.mounts) == 1


def test_sweep(tmp_path):
    recipes = ["configs/a.yaml", "configs/b.yaml"]
    app = components.sweep(
        "A", "1", check=False, configs=recipes, seeds=["1", "22"], j="2x4", data="/d", output="c:/out"
    )
    role = role_of(app)
    words, _ = run_script(role, tmp_path, RANK0="n")
    assert words[:5] == [
        "-m", "jobs.sweep", "--configs=configs/a.yaml,configs/b.yaml", "--seeds=1,22", "--output=/out",
    ]  # fmt: skip
    assert launch_options(words)["nnodes"] == "2"
    assert words[words.index("--") + 1 :] == ["DATASETS.ROOT", "/d", "A", "1"]
    assert [mount.dst_path for mount in role.mounts] == ["/d", "/out"]


def test_sweep_that_cannot_be_is_refused_before_it_is_queued(capsys):
    said = refusal(capsys, components.sweep, configs=[DEMO], seeds=["x"])
    assert said == "seeds must be whole numbers, not 'x'"


def test_tensorboard(tmp_path):
    role = role_of(components.tensorboard(logdir="claim:/runs", port=7007))
    words, _ = run_script(role, tmp_path)
    assert words == ["-m", "tensorboard.main", "--logdir", "/runs", "--host", "localhost", "--port", "7007"]
    assert role.port_map == {"http": 7007}
    assert (role.resource.gpu, role.mounts[0].read_only) == (0, True)


def test_signals_reach_the_program():
    """A shell that stayed in between would end at a signal, and the program be killed unsaved."""
    role = elastic_role("train", ["lgd.launch"], [], Elastic(Size(1, 1)), Machine())
    assert script_of(role).splitlines()[-1].startswith('exec "$python" ')


def test_importing_needs_neither_torch_nor_lgd():
    code = "import sys, jobs.components; print([m for m in ('torch', 'lgd') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
