# Completion of weft for bash. Install it as
# /usr/share/bash-completion/completions/weft, or: source <(weft completion bash)
_weft() {
  local cur=${COMP_WORDS[COMP_CWORD]} words dashes='s/^--/-/'
  words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
  if [[ $cur == -* ]]; then
    words+=("$cur")
  fi
  [[ $cur == --* ]] && dashes=
  local IFS=$'\n'
  mapfile -t COMPREPLY < <(compgen -W "$("${COMP_WORDS[0]}" "${words[@]}" --generate-bash-completion 2>/dev/null | sed "$dashes")" -- "$cur")
  if [[ ${#COMPREPLY[@]} -eq 0 && $cur != -* ]]; then
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
  fi
}
complete -o nospace -o bashdefault -F _weft weft
