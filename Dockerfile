# syntax=docker/dockerfile:1
# OpenRLHF, TRL and the plugin with flash-attention:
#   docker build --tag sparsepo .
#   docker run --gpus all --shm-size 16g --volume "$PWD:/workspace" sparsepo train my.yaml
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

ARG FLASH_ATTN=2.8.3
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DS_BUILD_OPS=0 PATH=/opt/venv/bin:$PATH

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# uv brings Python 3.11, for which the pins are.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates ninja-build python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --break-system-packages uv==0.13.8 \
    && uv venv --seed --python 3.11 /opt/venv

WORKDIR /src
COPY constraints/cuda13.txt constraints/
RUN pip install --require-hashes --requirement constraints/cuda13.txt \
    && pip install --no-build-isolation --no-deps "flash-attn==${FLASH_ATTN}"

COPY pyproject.toml setup.py README.md LICENSE ./
COPY sparsepo_plugin sparsepo_plugin
COPY patches patches
COPY examples examples
RUN pip install --no-deps . \
    && pip install --no-deps --python-version 3.12 --platform manylinux1_x86_64 \
        --target "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" openrlhf==0.11.2 \
    && useradd --uid 1001 --create-home sparsepo

USER 1001
WORKDIR /workspace
ENTRYPOINT ["sparsepo"]
CMD ["--help"]
