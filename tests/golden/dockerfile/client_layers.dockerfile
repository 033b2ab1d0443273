FROM python:3.11.12-slim-bookworm
RUN apt-get update
RUN apt-get install -y gcc gfortran build-essential
RUN pip install --upgrade pip wheel uv
RUN echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections
CMD ["sleep", "172800"]
COPY --from=ghcr.io/astral-sh/uv:latest /uv /.uv/uv
COPY /.2_requirements.txt /.uv/2/requirements.txt
RUN /.uv/uv pip install --python $(command -v python) --compile-bytecode 'torch==2.1' six
ENV A=plain B='a b'"'"'c' C="$A:${D:-none}"
WORKDIR srv
COPY . /
SHELL ["/bin/bash", "-c"]
RUN echo $A
ENTRYPOINT ["/entry"]
CMD run me
