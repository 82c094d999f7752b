#compdef weft
# Completion of weft for zsh. Install it as _weft in a folder of $fpath, or:
# source <(weft completion zsh)
_weft() {
  local -a opts call
  local cur=${words[CURRENT]} dashes='s/^--/-/'
  [[ $cur == --* ]] && dashes=
  call=("${words[@]:0:$((CURRENT-1))}")
  [[ $cur == -* ]] && call+=("$cur")
  opts=("${(@f)$(${call[@]} --generate-bash-completion 2>/dev/null | sed "$dashes")}")
  if [[ -n ${opts[1]} ]]; then
    compadd -- "${opts[@]}"
  else
    _files
  fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _weft "$@"
else
  compdef _weft weft
fi
