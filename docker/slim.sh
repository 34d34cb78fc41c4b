#!/bin/sh
# What a build left in /opt/hvd_lm and no run needs: build tools, headers, static libraries, debug information.
set -eu
pip uninstall -q -y cmake wheel
cd /opt/hvd_lm
find . -name '*.a' -delete
find . -path '*/site-packages/*/include' -prune -exec rm -rf {} +
find . -path '*/site-packages/horovod/*.so' -exec strip --strip-debug {} +
find . -name bin -path '*/site-packages/torch/bin' -prune -exec rm -rf {} +
