"""Jobs: TorchX components and submitit launchers around `lgd.train`."""
