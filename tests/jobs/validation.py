"""Manifests against Kubernetes' schemas (pods, Jobs, claims) and strict ones of our own for the rest."""

import json
from pathlib import Path

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").iterdir()}
REGISTRY = Registry().with_resources(
    [(name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()]
)
CUSTOM = {
    (s["properties"]["apiVersion"]["const"], s["properties"]["kind"]["const"]): s for s in SCHEMAS.values()
}


def problems(manifest):
    """One line for everything that a strict API server would refuse; unknown fields are such."""
    schema = CUSTOM.get((manifest["apiVersion"], manifest["kind"]))
    if schema is None:
        return native_problems(manifest)
    validator = jsonschema.Draft202012Validator(schema, registry=REGISTRY)
    found = [f"{place(error.absolute_path)}: {error.message}" for error in validator.iter_errors(manifest)]
    return found or [line for part in embedded(manifest) for line in native_problems(part)]


def native_problems(manifest):
    try:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['metadata']['name']} {place(error.path)}: {error.message}"]
    return []


def embedded(manifest):
    """The Jobs and Pods that the controller of a custom resource makes of it."""
    spec = manifest["spec"]
    if manifest["kind"] == "TrainingRuntime":
        spec = spec["template"]["spec"]
    for job in spec.get("replicatedJobs", []):
        yield native("batch/v1", "Job", job["name"], job["template"])
    for task in spec.get("tasks", []):
        yield native("v1", "Pod", task["name"], task["template"])


def native(api_version, kind, name, template):
    metadata = {"name": name, **template.get("metadata", {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": template["spec"]}


def place(path):
    return "/".join(map(str, path))
