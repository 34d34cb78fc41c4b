#!/bin/sh
# What a build left in /opt/hvd_lm and no run needs: build tools, headers, static libraries, debug information.
set -eu
pip uninstall -q -y cmake wheel
cd /opt/hvd_lm
find . -name '*.a' -delete
find . -path '*/site-packages/*/include' -prune -exec rm -rf {} +
find . -path '*/site-packages/horovod/*.so' -exec strip --strip-debug {} +
find . -path '*/site-packages/torch/bin/*' ! -name torch_shm_manager -delete
# What was taken away must not be missed.
python -c "
import importlib, importlib.util
for name in ('torch', 'tensorflow'):
    if importlib.util.find_spec(name):
        importlib.import_module(f'horovod.{name}')
"
