# Completion of weft for fish. Install it as
# /usr/share/fish/vendor_completions.d/weft.fish, or: weft completion fish | source
function __weft_complete
    set -l words (commandline -opc)
    set -l cur (commandline -ct)
    if string match -q -- '-*' $cur
        set -a words $cur
    end
    if string match -q -- '--*' $cur
        $words --generate-bash-completion 2>/dev/null
    else
        $words --generate-bash-completion 2>/dev/null | string replace -r '^--' '-'
    end
end
complete -c weft -f -a '(__weft_complete)'
