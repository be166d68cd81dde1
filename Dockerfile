# Penstock's image: docker build -t penstock . (docs/docker.md says how to run it).
#
#   --build-arg EXTRAS=redis,vllm   the extras of pyproject.toml that the image has
#   --build-arg PACKAGES="gcc ..."  more of Debian's packages in the image
#   --build-arg BASE=...            another Debian, or a system like it, with Python 3.11 or later
ARG BASE=debian:trixie-slim

# The first stage makes the wheel, and installs it with all it needs into /opt/penstock.
FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/penstock
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY penstock penstock
# penstock/page/client is a link to them.
COPY clients/javascript/src clients/javascript/src
ARG EXTRAS=redis
RUN /opt/pip/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/pip/bin/pip --python /opt/penstock/bin/python install --no-cache-dir \
        "$(echo /wheels/*.whl)[${EXTRAS}]"

# The second stage has neither pip nor the source. llama.cpp needs libgomp1.
FROM ${BASE}
ARG PACKAGES=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 penstock \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home penstock \
    && install -d -o 10001 -g 10001 /cache /etc/penstock /var/lib/penstock
COPY --from=build /opt/penstock /opt/penstock
COPY deploy/docker/is_ready.py /opt/penstock/is_ready.py

# Beyond its container, Penstock serves only with keys (or with --insecure). The admin port is for
# the health check: in plain HTTP and without keys, and only inside the container.
ENV PATH=/opt/penstock/bin:$PATH \
    HOME=/cache \
    HF_HOME=/cache \
    PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_ADMIN_PORT=9000
# Downloaded models. It may be the only place to write, with /tmp.
VOLUME /cache
# Penstock reads penstock.toml here, and `penstock key` writes keys.toml.
WORKDIR /etc/penstock
USER 10001:10001
EXPOSE 8000
# A model may take long to download and to load: failures count only after 30 minutes.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "/opt/penstock/is_ready.py"]
# Without a shell in between, SIGTERM reaches Penstock, which drains.
ENTRYPOINT ["penstock"]
CMD ["serve"]
