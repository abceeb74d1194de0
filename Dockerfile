# flow-opd and its pinned dependencies; results go to the folder that is mounted at /work.
#
#   docker build -t flow-opd .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" flow-opd demo
#
# For a card, with the CUDA of your driver:
#
#   docker build -t flow-opd --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" --user "$(id -u):$(id -g)" flow-opd distill my.yaml
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /opt/flow-opd
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" torch

COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" .
COPY configs configs

RUN useradd --create-home flow-opd && mkdir /work && chown flow-opd /work
USER flow-opd
# Any user id may run it: caches go where everybody may write.
ENV HF_HOME=/tmp/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["flow-opd"]
CMD ["--help"]
