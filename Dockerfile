# CPU image with MuJoCo and off-screen rendering:
#   docker build -t offrl .
#   docker run --rm -v "$PWD/runs:/work/runs" offrl train prdc --dataset builtin:double-pendulum-demo --steps 10000
# A GPU image starts from a CUDA build of torch instead: --build-arg TORCH=torch and a CUDA base image.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH=torch==2.13.0
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=egl PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN pip install "${TORCH}"
COPY pyproject.toml setup.py README.md LICENSE ./
COPY offrl ./offrl
COPY envs ./envs
COPY policies ./policies
RUN grep -v '^torch==' constraints.txt > /tmp/constraints.txt \
    && pip install -c /tmp/constraints.txt ".[mujoco,minari,knn,tables]" \
    && rm -rf /src
RUN useradd --create-home offrl && mkdir /work && chown offrl /work
USER offrl
WORKDIR /work
ENTRYPOINT ["offrl"]
CMD ["doctor"]
