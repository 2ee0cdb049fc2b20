# ruff: noqa: UP006, UP035, UP045, N803 (TorchX 0.7.0 reads these annotations' source and knows no others)
"""TorchX components: `torchx run -s SCHEDULER jobs/components.py:train --config F -j 2x8 [-- KEY VALUE ...]`.

`torchx run jobs/components.py:train --help` lists what it takes; a site's defaults go into .torchxconfig.
"""

from typing import Dict, List, Optional

from torchx import specs

from jobs.appdef import (
    IMAGE,
    Elastic,
    Machine,
    Size,
    check_recipe,
    elastic_role,
    folder_settings,
    mount_options,
    network_environment,
    said_in_one_line,
    single_role,
)
from jobs.sweep import runs_of_sweep


@said_in_one_line
def train(
    *settings: str,
    config: str,
    j: str = "1x8",
    data: str = "",
    output: str = "",
    resume: bool = True,
    image: str = IMAGE,
    cpu: int = 0,
    gpu: int = -1,
    memMB: int = 0,
    h: str = "",
    env: Optional[Dict[str, str]] = None,
    nccl_ib_disable: str = "",
    nccl_socket_ifname: str = "",
    nccl_tree_threshold: str = "",
    gloo_socket_ifname: str = "",
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 0,
    rdzv_timeout: int = 600,
    max_restarts: int = 3,
    max_retries: int = 3,
    log_dir: str = "",
    check: bool = True,
) -> specs.AppDef:
    """Train a detector, on one node or many.

    Args:
        settings: KEY VALUE pairs over the recipe's
        config: the recipe, a YAML file or a name that `lgd recipes` lists
        j: nodes x processes on each (one for each GPU), such as 2x8
        data: DATASETS.ROOT, mounted read-only: a /FOLDER of the hosts, or CLAIM:/PATH for a volume
        output: OUTPUT_DIR, mounted: /FOLDER, CLAIM:/PATH, or a relative path that needs no mount
        resume: go on from the newest checkpoint of OUTPUT_DIR, which every retry relies on
        image: container image
        cpu: cores of a node (0: 6 for each process)
        gpu: GPUs of a node (-1: one for each process)
        memMB: memory of a node in MiB (0: 16384 for each process)
        h: a named resource of TorchX in place of cpu, gpu, memMB
        env: more environment, A=1,B=2
        nccl_ib_disable: NCCL_IB_DISABLE, 1 to go without InfiniBand
        nccl_socket_ifname: NCCL_SOCKET_IFNAME, network interface of the GPUs' traffic, such as ib0
        nccl_tree_threshold: NCCL_TREE_THRESHOLD, 0 for rings only
        gloo_socket_ifname: GLOO_SOCKET_IFNAME, network interface of the CPUs' traffic
        mounts: more mounts, type=bind,src=/HOST,dst=/INSIDE[,readonly] or type=volume,src=CLAIM,dst=/INSIDE
        rdzv_port: port on the first node at which all meet (0: derived from the job's id)
        rdzv_timeout: seconds that nodes wait for one another
        max_restarts: how often lost workers bring all back to the newest checkpoint, on the same nodes
        max_retries: how often the scheduler starts the job again after a non-zero exit
        log_dir: folder on each node for a copy of every worker's output
        check: read recipe and settings before anything is queued; False where only the image has them
    """
    network = network_environment(
        nccl_ib_disable, nccl_socket_ifname, nccl_tree_threshold, gloo_socket_ifname
    )
    places, folders = folder_settings(data, output)
    machine = Machine(
        image, cpu, gpu, memMB, h, {**network, **(env or {})}, [*places, *(mounts or [])], max_retries
    )
    elastic = Elastic(Size.parse(j), rdzv_port, rdzv_timeout, max_restarts, log_dir)
    check_recipe(config, [*folders, *settings], check=check)
    arguments = ["--config-file", config, *(["--resume"] if resume else []), *folders, *settings]
    return specs.AppDef(
        name="train", roles=[elastic_role("train", ["lgd.launch"], arguments, elastic, machine)]
    )


@said_in_one_line
def evaluate(
    *settings: str,
    config: str,
    weights: str,
    j: str = "1x8",
    data: str = "",
    output: str = "",
    image: str = IMAGE,
    cpu: int = 0,
    gpu: int = -1,
    memMB: int = 0,
    h: str = "",
    env: Optional[Dict[str, str]] = None,
    nccl_ib_disable: str = "",
    nccl_socket_ifname: str = "",
    nccl_tree_threshold: str = "",
    gloo_socket_ifname: str = "",
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 0,
    rdzv_timeout: int = 600,
    max_retries: int = 0,
    check: bool = True,
) -> specs.AppDef:
    """Evaluate weights on the recipe's test sets.

    Args:
        settings: KEY VALUE pairs over the recipe's
        config: the recipe, a YAML file or a name that `lgd recipes` lists
        weights: MODEL.WEIGHTS, a checkpoint or weights of any kind that can be read
        j: nodes x processes on each (one for each GPU), such as 2x8
        data: DATASETS.ROOT, mounted read-only: a /FOLDER of the hosts, or CLAIM:/PATH for a volume
        output: OUTPUT_DIR, mounted: /FOLDER, CLAIM:/PATH, or a relative path that needs no mount
        image: container image
        cpu: cores of a node (0: 6 for each process)
        gpu: GPUs of a node (-1: one for each process)
        memMB: memory of a node in MiB (0: 16384 for each process)
        h: a named resource of TorchX in place of cpu, gpu, memMB
        env: more environment, A=1,B=2
        nccl_ib_disable: NCCL_IB_DISABLE, 1 to go without InfiniBand
        nccl_socket_ifname: NCCL_SOCKET_IFNAME, network interface of the GPUs' traffic, such as ib0
        nccl_tree_threshold: NCCL_TREE_THRESHOLD, 0 for rings only
        gloo_socket_ifname: GLOO_SOCKET_IFNAME, network interface of the CPUs' traffic
        mounts: more mounts, type=bind,src=/HOST,dst=/INSIDE[,readonly] or type=volume,src=CLAIM,dst=/INSIDE
        rdzv_port: port on the first node at which all meet (0: derived from the job's id)
        rdzv_timeout: seconds that nodes wait for one another
        max_retries: how often the scheduler starts the job again after a non-zero exit
        check: read recipe and settings before anything is queued; False where only the image has them
    """
    network = network_environment(
        nccl_ib_disable, nccl_socket_ifname, nccl_tree_threshold, gloo_socket_ifname
    )
    places, folders = folder_settings(data, output)
    machine = Machine(
        image, cpu, gpu, memMB, h, {**network, **(env or {})}, [*places, *(mounts or [])], max_retries
    )
    elastic = Elastic(Size.parse(j), rdzv_port, rdzv_timeout)
    settings = (*folders, "MODEL.WEIGHTS", weights, *settings)
    check_recipe(config, settings, check=check)
    arguments = ["--config-file", config, "--eval-only", *settings]
    return specs.AppDef(
        name="evaluate", roles=[elastic_role("evaluate", ["lgd.launch"], arguments, elastic, machine)]
    )


@said_in_one_line
def preflight(
    *arguments: str,
    config: str = "",
    j: str = "1x8",
    data: str = "",
    output: str = "",
    image: str = IMAGE,
    cpu: int = 0,
    gpu: int = -1,
    memMB: int = 0,
    h: str = "",
    env: Optional[Dict[str, str]] = None,
    nccl_ib_disable: str = "",
    nccl_socket_ifname: str = "",
    nccl_tree_threshold: str = "",
    gloo_socket_ifname: str = "",
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 0,
    rdzv_timeout: int = 120,
    check: bool = True,
) -> specs.AppDef:
    """Look at nodes, network and data before a long job: `python -m lgd.preflight` on all nodes.

    Args:
        arguments: further ones of lgd.preflight, such as KEY VALUE pairs over the recipe's
        config: a recipe, as for train, to look at its data and disks too
        j: nodes x processes on each (one for each GPU), such as 2x8
        data: DATASETS.ROOT, mounted read-only: a /FOLDER of the hosts, or CLAIM:/PATH for a volume
        output: OUTPUT_DIR, mounted: /FOLDER, CLAIM:/PATH, or a relative path that needs no mount
        image: container image
        cpu: cores of a node (0: 6 for each process)
        gpu: GPUs of a node (-1: one for each process)
        memMB: memory of a node in MiB (0: 16384 for each process)
        h: a named resource of TorchX in place of cpu, gpu, memMB
        env: more environment, A=1,B=2
        nccl_ib_disable: NCCL_IB_DISABLE, 1 to go without InfiniBand
        nccl_socket_ifname: NCCL_SOCKET_IFNAME, network interface of the GPUs' traffic, such as ib0
        nccl_tree_threshold: NCCL_TREE_THRESHOLD, 0 for rings only
        gloo_socket_ifname: GLOO_SOCKET_IFNAME, network interface of the CPUs' traffic
        mounts: more mounts, type=bind,src=/HOST,dst=/INSIDE[,readonly] or type=volume,src=CLAIM,dst=/INSIDE
        rdzv_port: port on the first node at which all meet (0: derived from the job's id)
        rdzv_timeout: seconds that nodes wait for one another
        check: read recipe and settings before anything is queued; False where only the image has them
    """
    network = network_environment(
        nccl_ib_disable, nccl_socket_ifname, nccl_tree_threshold, gloo_socket_ifname
    )
    places, folders = folder_settings(data, output)
    machine = Machine(image, cpu, gpu, memMB, h, {**network, **(env or {})}, [*places, *(mounts or [])])
    elastic = Elastic(Size.parse(j), rdzv_port, rdzv_timeout)
    recipe = ["--config-file", config, *folders] if config else []
    if config and check:
        from lgd.preflight.command import parse_arguments

        check_recipe(config, parse_arguments([*recipe, *arguments]).opts, check=check)
    launcher = ["lgd.launch", "--module=lgd.preflight"]
    role = elastic_role("preflight", launcher, [*recipe, *arguments], elastic, machine)
    return specs.AppDef(name="preflight", roles=[role])


@said_in_one_line
def sweep(
    *settings: str,
    configs: List[str],
    seeds: Optional[List[str]] = None,
    j: str = "1x8",
    data: str = "",
    output: str = "outputs/sweep",
    image: str = IMAGE,
    cpu: int = 0,
    gpu: int = -1,
    memMB: int = 0,
    h: str = "",
    env: Optional[Dict[str, str]] = None,
    nccl_ib_disable: str = "",
    nccl_socket_ifname: str = "",
    nccl_tree_threshold: str = "",
    gloo_socket_ifname: str = "",
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 0,
    rdzv_timeout: int = 600,
    max_restarts: int = 3,
    max_retries: int = 3,
    check: bool = True,
) -> specs.AppDef:
    """Train every recipe with every seed, one run after another on the same nodes.

    A retry goes on where a run was left. Side by side: `python -m jobs.submit --array`, or a job for each.

    Args:
        settings: KEY VALUE pairs over every recipe's
        configs: the recipes, as for train, separated by commas
        seeds: values of SEED, separated by commas (none: each recipe's own)
        j: nodes x processes on each (one for each GPU), such as 2x8
        data: DATASETS.ROOT, mounted read-only: a /FOLDER of the hosts, or CLAIM:/PATH for a volume
        output: folder of the runs' OUTPUT_DIRs, mounted: /FOLDER, CLAIM:/PATH, or a relative path
        image: container image
        cpu: cores of a node (0: 6 for each process)
        gpu: GPUs of a node (-1: one for each process)
        memMB: memory of a node in MiB (0: 16384 for each process)
        h: a named resource of TorchX in place of cpu, gpu, memMB
        env: more environment, A=1,B=2
        nccl_ib_disable: NCCL_IB_DISABLE, 1 to go without InfiniBand
        nccl_socket_ifname: NCCL_SOCKET_IFNAME, network interface of the GPUs' traffic, such as ib0
        nccl_tree_threshold: NCCL_TREE_THRESHOLD, 0 for rings only
        gloo_socket_ifname: GLOO_SOCKET_IFNAME, network interface of the CPUs' traffic
        mounts: more mounts, type=bind,src=/HOST,dst=/INSIDE[,readonly] or type=volume,src=CLAIM,dst=/INSIDE
        rdzv_port: port on the first node at which all meet, and the following ones (0: from the job's id)
        rdzv_timeout: seconds that nodes wait for one another
        max_restarts: how often lost workers bring a run back to its newest checkpoint, on the same nodes
        max_retries: how often the scheduler starts the job again after a non-zero exit
        check: read recipe and settings before anything is queued; False where only the image has them
    """
    network = network_environment(
        nccl_ib_disable, nccl_socket_ifname, nccl_tree_threshold, gloo_socket_ifname
    )
    places, folders = folder_settings(data, "")
    for _, (_, recipe, *own) in runs_of_sweep(configs, seeds or []):
        check_recipe(recipe, [*folders, *settings, *own], check=check)
    outputs, root = mount_options(output, read_only=False)
    mounts = [*places, *outputs, *(mounts or [])]
    machine = Machine(image, cpu, gpu, memMB, h, {**network, **(env or {})}, mounts, max_retries)
    elastic = Elastic(Size.parse(j), rdzv_port, rdzv_timeout, max_restarts)
    launcher = [
        "jobs.sweep",
        f"--configs={','.join(configs)}",
        f"--seeds={','.join(seeds or [])}",
        f"--output={root}",
    ]
    role = elastic_role("sweep", launcher, [*folders, *settings], elastic, machine)
    return specs.AppDef(name="sweep", roles=[role])


@said_in_one_line
def tensorboard(
    logdir: str = "outputs",
    port: int = 6006,
    host: str = "localhost",
    image: str = IMAGE,
    cpu: int = 2,
    memMB: int = 8192,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Serve the curves of all runs below a folder.

    Args:
        logdir: a /FOLDER of the hosts, CLAIM:/PATH for a volume, or a relative path
        port: to serve on
        host: address to listen on; localhost does for kubectl port-forward and ssh -L, 0.0.0.0 serves all
        image: container image
        cpu: cores
        memMB: memory in MiB
        mounts: more mounts, type=bind,src=/HOST,dst=/INSIDE[,readonly] or type=volume,src=CLAIM,dst=/INSIDE
    """
    places, folder = mount_options(logdir, read_only=True)
    machine = Machine(image, cpu, gpu=0, memory=memMB, mounts=[*places, *(mounts or [])])
    arguments = ["-m", "tensorboard.main", "--logdir", folder, "--host", host, "--port", str(port)]
    return specs.AppDef(
        name="tensorboard", roles=[single_role("tensorboard", arguments, machine, "http", port)]
    )
