# syntax=docker/dockerfile:1
# escape=`
ARG VERSION=1.2
FROM --platform=linux/amd64 alpine:${VERSION} AS Tools
ARG VERSION
RUN echo $VERSION `
    # a comment in between
    && echo done

FROM scratch AS unused
RUN never

FROM debian
ARG VERSION GREETING="hello world"
ARG TARGETARCH
LABEL a=b "c d"="e f"
EXPOSE 80/tcp
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s CMD curl x
VOLUME ["/data"]
ENV OLD form with  spaces
ENV PATH=/opt/$VERSION/bin:$PATH V=${VERSION:+set}
USER nobody:nogroup
WORKDIR /opt/${VERSION}
WORKDIR ../sub/./dir
RUN ["python", "-c", "print('$PATH')"]
RUN --network=none <<EOF
set -e
echo $GREETING "$TARGETARCH"
EOF
RUN <<'PY' cat > /x
keep $this
PY
RUN <<EOF
#!/usr/bin/env python3
print("hi")
EOF
COPY --from=tools --chown=1:2 --chmod=755 /bin/a* b/ /out/
COPY --from=0 ["a b", "c/"]
COPY <<one <<"two" /docs/
version $VERSION
one
version $VERSION
two
ADD --chown=user:group src.tar.gz .
