# The installation, and the project as it was when the image was built. Nothing is downloaded when a container runs.
#
#   docker build -t ril:cpu .
#   docker build -t ril:gpu --build-arg PROFILE=gpu .
#   docker run --rm -it --shm-size 8g -v ril-project:/project -v ril-store:/store -v ril-cache:/cache ril:cpu ril run
#
# For GPUs add --gpus all (NVIDIA Container Toolkit); PyTorch's packages bring CUDA along. docs/clusters.md says more.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# cpu or gpu: which lock is installed
ARG PROFILE=cpu
# whose files the volumes hold; `--user` takes another one at run time
ARG USER_ID=1000
ARG GROUP_ID=1000

SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]

# g++: triton and flex attention compile at first use. libnuma1: the only library of the system that the packages want
# beside those of C++. tini: signals reach `ril`, and zombies are reaped.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates g++ git libnuma1 make tini \
 && rm -rf /var/lib/apt/lists/* \
 && { getent group "${GROUP_ID}" > /dev/null || groupadd --gid "${GROUP_ID}" ril; } \
 && useradd --uid "${USER_ID}" --gid "${GROUP_ID}" --create-home ril \
 && install --directory --owner "${USER_ID}" --group "${GROUP_ID}" /opt/ril /project /store /cache \
 && git config --system --add safe.directory /opt/ril \
 && git config --system --add safe.directory /opt/ril/.git \
 && git config --system --add safe.directory /project

USER ril
WORKDIR /opt/ril

# Locked packages, with hashes. First without the code, so that a change of it installs nothing anew; `ril` finds it by
# PYTHONPATH.
COPY --chown=${USER_ID}:${GROUP_ID} Makefile pyproject.toml README.md LICENSE ./
COPY --chown=${USER_ID}:${GROUP_ID} requirements ./requirements
RUN PIP_NO_CACHE_DIR=1 make install PROFILE="${PROFILE}"
COPY --chown=${USER_ID}:${GROUP_ID} . .

# The code that runs is that of /project, where stages are recorded; answers and caches outlive containers.
ENV PATH=/opt/ril/.venv/bin:${PATH} \
    PYTHONPATH=/project \
    RIL_STORE=/store \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    DVC_SITE_CACHE_DIR=/cache/dvc \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    PREFECT_HOME=/cache/prefect \
    VLLM_NO_USAGE_STATS=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /project
VOLUME ["/project", "/store", "/cache"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "/opt/ril/containers/entrypoint"]
CMD ["ril", "run"]
