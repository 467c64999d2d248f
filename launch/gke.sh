#!/usr/bin/env bash
# Trains on Google Kubernetes Engine, on GPUs or a TPU slice, as a JobSet.
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "$0")/lib.sh"

port=8476

usage() {
  cat <<'TEXT'
usage: launch/gke.sh train|manifest NAME --image IMAGE --accelerator TYPE --per-node N --volume CLAIM [options] -- TRAINING
       launch/gke.sh status|logs|delete NAME

train     applies a JobSet of the name NAME: one pod per node, each with `python -m w2v_jax.train TRAINING`. When a pod
          is lost or crashes, all start again and go on from the last checkpoint; a wrong option (exit code 2) and a dead
          run (3) end the JobSet. One that has ended is replaced; one that runs is left as it is.
manifest  prints what train applies
status    shows the JobSet and its pods
logs      follows the output of the first pod
delete    deletes the JobSet; the pods get SIGTERM and save

  --image IMAGE        a container image with w2v_jax, its extra gpu or tpu, and the configs in the working folder
  --accelerator TYPE   as GKE names it: nvidia-h100-80gb, nvidia-l4, tpu-v5-lite-podslice, tpu-v6e-slice, ...
  --per-node N         GPUs or TPU chips of each node
  --nodes N            nodes with GPUs (default: 1); for a TPU they follow from the topology
  --topology AxB       topology of the TPU slice, e.g. 4x4 or 2x2x4
  --volume CLAIM       a PersistentVolumeClaim that many nodes can write (ReadWriteMany); it is mounted at /data
  --spot               on Spot nodes
  --restarts N         how often all pods may start again (default: 30)
  --namespace NAME     (default: that of kubectl)
  --yes                do not ask
  --dry-run            print the commands, run nothing

The cluster needs the JobSet controller, version 0.6 or newer. kubectl chooses the cluster.
Example: launch/gke.sh train base --image REGISTRY/w2v_jax:TAG --accelerator tpu-v5-lite-podslice --topology 4x4 \
           --per-node 4 --volume speech -- --config=configs/w2v2_base.py --workdir=/data/runs/base \
           --config.data.root=/data/recordings
TEXT
}

# yaml TEXT: as a string of YAML.
yaml() {
  local text=$1 slash=\\
  text=${text//"$slash"/"$slash$slash"}
  text=${text//'"'/"$slash"'"'}
  text=${text//$'\n'/"${slash}n"}
  text=${text//$'\t'/"${slash}t"}
  text=${text//$'\r'/"${slash}r"}
  printf '"%s"' "$text"
}

manifest() {
  local is_tpu=$1 nodes=$2 resource=nvidia.com/gpu word
  if $is_tpu; then resource=google.com/tpu; fi
  cat <<TEXT
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
TEXT
  if $is_tpu; then
    cat <<TEXT
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool  # all pods in one slice
TEXT
  fi
  cat <<TEXT
spec:
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true  # the pods find each other while they start
  failurePolicy:
    maxRestarts: ${option[restarts]}
    rules:
    - action: FailJobSet  # the exit codes below: starting again would not help
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: train
    replicas: 1
    template:
      spec:
        parallelism: $nodes
        completions: $nodes
        completionMode: Indexed
        backoffLimit: 0  # one lost pod starts all again
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [2, 3]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120  # for the last checkpoint
            nodeSelector:
TEXT
  if $is_tpu; then
    cat <<TEXT
              cloud.google.com/gke-tpu-accelerator: $(yaml "${option[accelerator]}")
              cloud.google.com/gke-tpu-topology: $(yaml "${option[topology]}")
TEXT
  else
    cat <<TEXT
              cloud.google.com/gke-accelerator: $(yaml "${option[accelerator]}")
TEXT
  fi
  if [ -n "${option[spot]:-}" ]; then
    cat <<TEXT
              cloud.google.com/gke-spot: "true"
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: "true"
              effect: NoSchedule
TEXT
  fi
  cat <<TEXT
            containers:
            - name: train
              image: $(yaml "${option[image]}")
              command: ["python", "-m", "w2v_jax.train"]
              args:
TEXT
  for word in "${train[@]}"; do
    printf '              - %s\n' "$(yaml "${word//\$/\$\$}")" # Kubernetes reads \$\$ as \$ and \$(X) as a variable
  done
  if $is_tpu; then
    printf '              - "--distributed"\n' # GKE tells each pod of a slice which one it is
  else
    printf '              - "--distributed=%s-train-0-0.%s:%s,%s,%s"\n' "$name" "$name" "$port" "$nodes" \
      "\$(JOB_COMPLETION_INDEX)"
  fi
  cat <<TEXT
              ports:
              - containerPort: $port
              resources:
                limits:
                  $resource: ${option["per-node"]}
              volumeMounts:
              - {name: data, mountPath: /data}
              - {name: shm, mountPath: /dev/shm}
            volumes:
            - name: data
              persistentVolumeClaim:
                claimName: $(yaml "${option[volume]}")
            - name: shm
              emptyDir: {medium: Memory}
TEXT
}

read_options "image accelerator per-node nodes topology volume restarts namespace" "spot" "$@"
action=${words[0]:-} name=${words[1]:-}
[ ${#words[@]} -le 2 ] || wrong "'${words[2]}' stands before --; arguments of the training stand after it"
case $action in
  train | manifest | status | logs | delete) ;;
  '') wrong "say what to do: train, manifest, status, logs or delete" ;;
  *) wrong "'$action' is none of train, manifest, status, logs, delete" ;;
esac
need_name "$name"
kubectl=(kubectl)
if [ -n "${option[namespace]:-}" ]; then kubectl+=("--namespace=${option[namespace]}"); fi
pods=jobset.sigs.k8s.io/jobset-name=$name

if [ "$action" = train ] || [ "$action" = manifest ]; then
  need_option image "the container image"
  need_option accelerator "the GPU or TPU, e.g. nvidia-l4 or tpu-v5-lite-podslice"
  need_option per-node "how many GPUs or TPU chips each node has"
  need_option volume "the claim of the disk for recordings and workdir"
  need_number per-node 8
  need_number restarts 30
  need_training
  [[ ${option[workdir]} == /data/* || ${option[workdir]} == *://* ]] ||
    wrong "--workdir=${option[workdir]}: only /data, where --volume is mounted, and a URL outlive a pod; e.g." \
      "/data/runs/$name"
  is_tpu=false
  if [[ ${option[accelerator]} == tpu* ]]; then
    is_tpu=true
    need_option topology "the shape of the TPU slice, e.g. 4x4"
    [ -z "${option[nodes]:-}" ] || wrong "leave out --nodes: the topology of a TPU says how many there are"
    [[ ${option[topology]} =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] ||
      wrong "--topology=${option[topology]}: it looks like 4x4 or 2x2x4"
    chips=$((${option[topology]//x/*}))
    ((chips % option["per-node"] == 0)) ||
      wrong "--topology=${option[topology]} has $chips chips, which --per-node=${option["per-node"]} does not divide"
    nodes=$((chips / option["per-node"]))
  else
    [ -z "${option[topology]:-}" ] || wrong "leave out --topology: it belongs to TPUs"
    need_number nodes 1
    nodes=${option[nodes]}
  fi
fi

if [ "$action" = manifest ]; then
  manifest "$is_tpu" "$nodes"
  exit 0
fi
need_tool kubectl "Install it (gcloud components install kubectl) and choose the cluster (gcloud container clusters get-credentials)"

case $action in
  train)
    confirm "This starts $nodes node(s) with ${option["per-node"]} x ${option[accelerator]}, which cost money until the training ends"
    say "starting the JobSet $name: $nodes pod(s)"
    state=$(ask "" "${kubectl[@]}" get jobset "$name" --ignore-not-found \
      '--output=jsonpath={.status.conditions[?(@.status=="True")].type}') ||
      fail "kubectl get jobset failed: is the cluster chosen, and is the JobSet controller installed?"
    if [[ " $state " == *" Completed "* || " $state " == *" Failed "* ]]; then
      say "the JobSet $name has ended (${state##* }); it is replaced, and training goes on from its workdir"
      run "${kubectl[@]}" delete jobset "$name" --ignore-not-found
    fi
    text=$(manifest "$is_tpu" "$nodes")
    run "${kubectl[@]}" apply --filename=- <<<"$text" ||
      fail "kubectl apply failed. To change a JobSet that runs, delete it first: $script delete $name"
    $dry_run && say "what is applied from standard input is shown by: $script manifest $name ..."
    say "applied; to follow it: $script logs $name; to end it: $script delete $name"
    ;;
  status)
    run "${kubectl[@]}" get jobset "$name" --ignore-not-found
    run "${kubectl[@]}" get pods "--selector=$pods" --output=wide
    ;;
  logs)
    run "${kubectl[@]}" logs "--selector=$pods,batch.kubernetes.io/job-completion-index=0" --tail=-1 --follow
    ;;
  delete)
    run "${kubectl[@]}" delete jobset "$name" --ignore-not-found
    say "deleted; the nodes cost money until the cluster takes them down"
    ;;
esac
