#!/usr/bin/env bash
# Run clip-effects in shards by GNU parallel, then clip-merge: on this machine, or over ssh on several machines that share a file system.
#
#   parallel.sh SHARDS BUNDLE PATH... [OPTIONS of clip-effects]
#   JOBS=2 parallel.sh 8 effects.safetensors photos/ --layers 5-6
#   HOSTS=hosts.txt JOBS=4 parallel.sh 256 effects.safetensors shards/*.tar --model ViT-B-32-quickgelu --pretrained openai
#
# JOBS   shards at a time, on each machine
# HOSTS  a file with one ssh login per line (: is this machine); clip-effects is on their PATH, and this folder has the same path there
# GPUS   number of GPUs of this machine: a job sees one of them, by CUDA_VISIBLE_DEVICES (not with HOSTS: slots are counted over all machines)
# MERGE  options of clip-merge: MERGE="--images photos/"
#
# Partials are written to BUNDLE.parts, with parallel's log of the time and machine of each partial (parts/joblog). A shard that fails, or whose
# machine is lost, is tried three times; after that no other shard is started. The same command continues such a run: clip-effects --resume checks
# each existing partial, which is safer than parallel's own --resume (which trusts its log even if files or options have changed).
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
shards=$1 bundle=$2
shift 2
parts=${bundle%.safetensors}.parts
mkdir -p "$parts"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
options=(--jobs "${JOBS:-1}" --joblog "$parts/joblog" --retries 3 --halt 'soon,fail=1' --line-buffer --tagstring 'shard {}')
if [ -n "${HOSTS:-}" ]; then
    options+=(--sshloginfile "$HOSTS" --workdir "$PWD" --env OMP_NUM_THREADS)
fi
gpu=()
if [ -n "${GPUS:-}" ]; then
    if [ -n "${HOSTS:-}" ]; then
        echo "parallel.sh: GPUS is for this machine alone; with HOSTS give JOBS=1, or use Ray or Slurm" >&2
        exit 2
    fi
    gpu=(env "CUDA_VISIBLE_DEVICES={= \$_ = (slot() - 1) % $GPUS =}")
fi
parallel --quote "${options[@]}" "${gpu[@]}" clip-effects "$@" --shard "{}/$shards" --resume -o "$parts/part-{}-of-$shards.safetensors" \
    ::: $(seq "$shards")
# shellcheck disable=SC2086  # several options
clip-merge "$parts"/part-*-of-"$shards".safetensors ${MERGE:-} -o "$bundle"
