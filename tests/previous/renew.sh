#!/bin/sh
# Write the archive of a release: tests/previous/renew.sh [COMMIT]. Without a commit, of the last one.
set -eu
cd "$(dirname "$0")/../.."
archive=tests/previous/release.tar
git archive --format=tar --output="$archive" "${1:-HEAD}" \
    worker tasks db cache cli dev celeryconfig.py queues.yaml ':(exclude)dev/data'
gzip -9 --no-name --force "$archive" # no name and no time: the same commit gives the same bytes
