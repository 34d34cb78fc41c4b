#!/usr/bin/env bash
# Tells horovodrun which hosts there are, a line "host:workers" for each: those of a file, without comments and empty lines.
# A script for your cluster would ask its scheduler instead, and print the same.
set -euo pipefail
: "${HVD_LM_HOSTS_FILE:?names the file}"
grep -E '^[A-Za-z0-9][A-Za-z0-9._-]*:[1-9][0-9]{0,4}$' "$HVD_LM_HOSTS_FILE" || true
