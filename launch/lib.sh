#!/usr/bin/env bash
# What the scripts of this folder share: options, messages, the question about money, commands run or only printed.
# It is sourced, not run. A script that sources it defines `usage`.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed, and this is $BASH_VERSION; on a Mac: brew install bash" >&2
  exit 1
fi

script=launch/$(basename "$0")
dry_run=false
yes=false
declare -A option=() # values of the options
words=()             # what stands beside the options
train=()             # what stands after --: the arguments of w2v_jax.train
exec 3>&1            # where a dry run prints, also from inside $(...)

say() {
  local note=''
  if $dry_run; then note='(dry run) '; fi
  printf '%s: %s%s\n' "$script" "$note" "$*" >&2
}

fail() {
  say "error: $*"
  exit 1
}

wrong() {
  say "error: $*"
  say "$script --help shows the options"
  exit 2
}

# quoted WORD...: the words as one line from which a shell reads the same words.
quoted() {
  local word line=''
  for word in "$@"; do
    if [[ $word =~ ^[a-zA-Z0-9_@%+=:,./-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  printf '%s\n' "${line# }"
}

# run COMMAND...: shows the command and runs it; a dry run only prints it.
run() {
  if $dry_run; then
    quoted "$@" >&3
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# ask ASSUMED COMMAND...: what the command prints; a dry run prints the command and takes the assumed answer.
ask() {
  if $dry_run; then
    quoted "${@:2}" >&3
    printf '%s\n' "$1"
  else
    "${@:2}"
  fi
}

# read_options VALUES FLAGS WORD...: fills option, words and train. VALUES and FLAGS are names between spaces.
read_options() {
  local values=" $1 " flags=" $2 " name
  shift 2
  while [ $# -gt 0 ]; do
    if [[ $1 == --?*=* ]]; then
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
    fi
    name=${1#--}
    case $1 in
      --)
        train=("${@:2}")
        return
        ;;
      --help | -h)
        usage
        exit 0
        ;;
      --dry-run) dry_run=true ;;
      --yes) yes=true ;;
      --*)
        if [[ $flags == *" $name "* ]]; then
          option[$name]=true
        elif [[ $values != *" $name "* ]]; then
          wrong "there is no option $1; arguments of the training stand after --"
        elif [ $# -lt 2 ] || [ -z "$2" ]; then
          wrong "$1 needs a value"
        else
          option[$name]=$2
          shift
        fi
        ;;
      *) words+=("$1") ;;
    esac
    shift
  done
}

# need_option NAME WHAT-FOR
need_option() {
  [ -n "${option[$1]:-}" ] || wrong "--$1 is needed: $2"
}

# need_number NAME DEFAULT: the option is a number of at least 1 (0 where the default is 0).
need_number() {
  : "${option[$1]:=$2}"
  [[ ${option[$1]} =~ ^[0-9]{1,9}$ ]] || wrong "--$1=${option[$1]}: it is a number, e.g. $2"
  option[$1]=$((10#${option[$1]}))
  ((option[$1] > 0 || $2 == 0)) || wrong "--$1=0: it is at least 1"
}

# need_name NAME: what clouds take as a name everywhere.
need_name() {
  [ -n "$1" ] || wrong "a name is needed, e.g. $script ${words[0]:-train} my-run"
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    wrong "the name '$1' is not possible: small letters, digits and -, at most 40, first a letter"
}

# need_tool NAME HOW-TO-GET-IT
need_tool() {
  $dry_run || command -v "$1" >/dev/null || fail "$1 is not installed. $2"
}

# need_training: refuses at once what training would refuse later, on machines that cost money by then.
need_training() {
  local word before='' config=false workdir=''
  for word in "${train[@]}"; do
    case $word in
      --config | --config=*) config=true ;;
      --workdir=*) workdir=${word#*=} ;;
      --distributed | --distributed=*) wrong "leave out $word: this script adds what is right here" ;;
    esac
    if [ "$before" = --workdir ]; then workdir=$word; fi
    before=$word
  done
  $config && [ -n "$workdir" ] ||
    wrong "--config and --workdir of the training are needed after --, e.g. -- --config=configs/w2v2_base.py --workdir=DIR"
  option[workdir]=$workdir
}

# confirm WHAT: asks before something that may cost money; without a terminal only --yes will do.
confirm() {
  local answer
  if $yes || $dry_run; then return; fi
  [ -t 0 ] || wrong "$1. There is no terminal to ask at: add --yes if that is meant"
  read -r -p "$script: $1. Go on? [y/N] " answer
  [[ $answer == [yY]* ]] || fail "not confirmed; nothing was started"
}
