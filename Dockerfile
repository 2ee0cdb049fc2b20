# The image of cluster jobs: PyTorch with its own CUDA libraries, this package, and InfiniBand's user libraries.
#
#   docker build -t registry.example.com/lgd:latest . && docker push registry.example.com/lgd:latest
#
# The hosts need NVIDIA's driver and container toolkit. Data and outputs are mounted at datasets/ and outputs/.
FROM python:3.12-slim

# NCCL loads the verbs libraries at run time; without them it silently falls back to TCP.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libibverbs1 ibverbs-providers librdmacm1 \
    && rm -rf /var/lib/apt/lists/*

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /workspace/lgd

# Dependencies first: they are gigabytes and change less often than the code.
COPY setup.py setup.cfg README.md LICENSE ./
COPY lgd/__init__.py lgd/__init__.py
RUN mkdir configs && pip install . && pip uninstall -y lgd

COPY lgd lgd
COPY jobs jobs
COPY configs configs
RUN pip install --no-deps -e . && mkdir -p datasets outputs && chmod 1777 outputs

CMD ["python", "-m", "lgd.train", "--help"]
