"""The manifests: valid against strict schemas, equal where they say the same, and a broken one is refused."""

import copy

import pytest
import yaml

from tests.jobs.validation import problems
from tests.training import REPOSITORY

FOLDER = REPOSITORY / "jobs" / "kubernetes"


def manifests(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def find(name, kind):
    return next(manifest for manifest in manifests(name) if manifest["kind"] == kind)


@pytest.fixture
def jobset():
    return find("jobset.yaml", "JobSet")


def job_of(spec):
    (replicated,) = spec["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(spec):
    return job_of(spec)["template"]["spec"]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_valid(name):
    for manifest in manifests(name):
        assert problems(manifest) == []


def break_unknown_field(spec):
    spec["replicas"] = 2


def break_failure_action(spec):
    spec["failurePolicy"]["rules"][0]["action"] = "Restart"


def break_job(spec):
    job_of(spec)["backOffLimit"] = 1


def break_failure_policy(spec):
    job_of(spec)["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = ["75"]


def break_pod(spec):
    pod_of(spec)["terminationGracePeriod"] = 300


def break_container(spec):
    del pod_of(spec)["containers"][0]["name"]


def break_environment(spec):
    pod_of(spec)["containers"][0]["env"][0]["value"] = 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_unknown_field, "'replicas' was unexpected"),
        (break_failure_action, "failurePolicy/rules/0/action: 'Restart' is not one of"),
        (break_job, "'backOffLimit' was unexpected"),
        (break_failure_policy, "podFailurePolicy/rules/0/onExitCodes/values/0"),
        (break_pod, "'terminationGracePeriod' was unexpected"),
        (break_container, "'name' is a required property"),
        (break_environment, "env/0/value"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize(("file", "kind"), [("jobset.yaml", "JobSet"), ("trainjob.yaml", "TrainingRuntime")])
def test_broken_manifest_is_refused(file, kind, damage, message):
    manifest = find(file, kind)
    spec = manifest["spec"] if kind == "JobSet" else manifest["spec"]["template"]["spec"]
    damage(spec)
    (line,) = problems(manifest)
    assert message in line


@pytest.mark.parametrize(
    ("key", "value"), [("numNodes", "2"), ("podTemplateOverrides", []), ("command", "python"), ("nodes", 2)]
)
def test_broken_train_job_is_refused(key, value):
    manifest = find("trainjob.yaml", "TrainJob")
    manifest["spec"]["trainer"][key] = value
    (line,) = problems(manifest)
    assert line.startswith("spec/trainer")


def options(words):
    return dict(
        word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word
    )


def test_size_is_the_same_everywhere(jobset):
    job, (container,) = job_of(jobset["spec"]), pod_of(jobset["spec"])["containers"]
    launch = options(container["command"])
    assert job["completions"] == job["parallelism"] == int(launch["nnodes"]) == 2
    assert container["resources"]["limits"]["nvidia.com/gpu"] == launch["nproc-per-node"] == "8"


def test_pods_meet_at_the_first_one(jobset):
    (container,) = pod_of(jobset["spec"])["containers"]
    launch, name = options(container["command"]), jobset["metadata"]["name"]
    (port,) = container["ports"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert launch["rdzv-endpoint"] == f"{name}-{replicated['name']}-0-0.{name}:{port['containerPort']}"
    assert jobset["spec"]["network"]["enableDNSHostnames"]


def test_exit_codes_decide_what_follows(jobset):
    from lgd import exits

    rules = {
        code: rule["action"]
        for rule in job_of(jobset["spec"])["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert rules == {exits.USER_ERROR: "FailJob", exits.RUN_AGAIN: "Ignore"}
    assert pod_of(jobset["spec"])["restartPolicy"] == "Never"
    assert "--resume" in pod_of(jobset["spec"])["containers"][0]["args"]


def test_pods_have_shared_memory_claims_and_time_to_save(jobset):
    pod = pod_of(jobset["spec"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    claims = {claim["metadata"]["name"] for claim in manifests("volumes.yaml")}
    used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert used == claims
    assert pod["terminationGracePeriodSeconds"] >= 120


def test_train_job_says_the_same_as_the_job_set(jobset):
    runtime, job = find("trainjob.yaml", "TrainingRuntime"), find("trainjob.yaml", "TrainJob")
    template, trainer = runtime["spec"]["template"]["spec"], job["spec"]["trainer"]
    assert job["metadata"]["name"] == jobset["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    # What Kubeflow's controller does: nodes, command and arguments of the job into the runtime's template.
    made = copy.deepcopy(template)
    del made["replicatedJobs"][0]["template"]["metadata"]
    made["replicatedJobs"][0]["replicas"] = 1
    job_of(made).update(
        completionMode="Indexed", completions=trainer["numNodes"], parallelism=trainer["numNodes"]
    )
    pod_of(made)["containers"][0].update(command=trainer["command"], args=trainer["args"])
    # Each is cancelled by its own kind.
    (own,) = (variable for variable in pod_of(made)["containers"][0]["env"] if variable["name"] == "LGD_JOB")
    assert own["value"] == "kubernetes trainjob/$(JOB)"
    own["value"] = "kubernetes jobset/$(JOB)"
    assert made == jobset["spec"]
