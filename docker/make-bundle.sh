#!/bin/sh
# Puts the model's bundle into /bundle: the ready one in the folder $BUNDLE of the build context, or
# else $MODEL with the weights $PRETRAINED, exported with torch and the options that are given here.
set -eu

clip_bundle=/opt/clickhouse-clip/bin/clip-bundle

fail() {
    echo "clickhouse-clip: $1" >&2
    exit 1
}

if [ -n "$BUNDLE" ]; then
    [ -f "/context/$BUNDLE/manifest.json" ] ||
        fail "BUNDLE=$BUNDLE: the build context has no bundle there (a folder made by clip-bundle \
export). Is it below the folder that docker build was given, and not in .dockerignore?"
    "$clip_bundle" verify "/context/$BUNDLE"
    cp -r "/context/$BUNDLE" /bundle
else
    [ -n "$MODEL" ] ||
        fail "which model? --build-arg BUNDLE=FOLDER takes a ready bundle from the build context, \
--build-arg MODEL=ViT-B-32 exports one"
    sh /context/docker/pip-install.sh '/context[export]'
    "$clip_bundle" export --model "$MODEL" --pretrained "$PRETRAINED" --output /bundle "$@"
fi
chmod -R u=rwX,go=rX /bundle
