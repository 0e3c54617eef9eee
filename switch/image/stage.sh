#!/bin/sh
# Puts programs, and the libraries that they are linked with, into a folder: the root file system of an image.
# Usage: stage.sh FOLDER PROGRAM...
set -eu
root=$1
shift
for program; do
  install -D -m 755 -t "$root/usr/bin" "$program"
  # The loader is named by its path alone, libraries behind an arrow; what the kernel brings has no path.
  ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 755 "$library" "$root$library"
  done
done
