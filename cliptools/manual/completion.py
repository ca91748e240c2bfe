"""Completion scripts for bash, zsh and fish: each asks the command itself, through click, what may stand at the cursor.

click's own scripts are not used: they part values at commas (fish) and at colons (bash), offer no files beside names, and
do not know --option=VALUE. The answer they ask for is the same: a line for each word, `plain,WORD<tab>what it means`, or
`file,` or `dir,` where the shell itself is to look.
"""

from collections.abc import Iterable, Iterator

ORIGIN = "# Made by python -m cliptools.manual; make man makes it anew."

BASH = r"""
_cliptools() {
    local line=${COMP_LINE:0:COMP_POINT} variable=${1##*/} item type value files=
    local typed=${line##*[[:space:]]} word
    variable=_${variable//-/_}_COMPLETE
    COMPREPLY=()
    while IFS= read -r item; do
        type=${item%%,*} value=${item#*,}
        case $type in
            plain) COMPREPLY+=("${value%%$'\t'*}") ;;
            file) files=f ;;
            dir) files=d ;;
        esac
    done < <(env "${variable^^}=fish_complete" COMP_WORDS="$line" COMP_CWORD="$typed" "$1" 2>/dev/null)
    if [[ $files && ${#COMPREPLY[@]} -eq 0 ]]; then
        [[ $files == d ]] && compopt -o dirnames || compopt -o default
        return
    fi
    # readline parts words at colons, and replaces what comes after the last one
    word=${typed#--*=}
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
    fi
    if [[ $files ]]; then
        compopt -o filenames
        while IFS= read -r value; do
            COMPREPLY+=("$value")
        done < <(compgen "-$files" -- "$word")
    fi
}

complete -o nosort -F _cliptools @NAME@ 2>/dev/null || complete -F _cliptools @NAME@
"""

ZSH = r"""
_cliptools() {
    local typed=$PREFIX item value variable=_${${(U)words[1]:t}//-/_}_COMPLETE
    local -a known described
    [[ $PREFIX == --*=* ]] && compset -P '*='
    for item in ${(f)"$(env $variable=fish_complete COMP_WORDS="${words[1,CURRENT-1]} $typed" COMP_CWORD="$typed" \
            ${~words[1]} 2>/dev/null)"}; do
        value=${item#*,}
        case ${item%%,*} in
            plain)
                if [[ $value == *$'\t'* ]]; then
                    described+=("${${value%%$'\t'*}//:/\\:}:${value#*$'\t'}")
                else
                    known+=("$value")
                fi ;;
            file) _files ;;
            dir) _files -/ ;;
        esac
    done
    (( $#described )) && _describe -V option described
    (( $#known )) && compadd -V known -a known
}

_cliptools "$@"
"""

FISH = r"""
function _cliptools_complete
    set -l name (commandline -poc)[1]
    set -l typed (commandline -ct)
    set -l option (string match -r -- '^--[^=]+=' $typed; or echo '')
    set -l variable _(string upper -- (string replace -a -- - _ (string replace -r -- '.*/' '' $name)))_COMPLETE
    for item in (env $variable=fish_complete COMP_WORDS=(commandline -cp | string collect) COMP_CWORD="$typed" $name 2>/dev/null)
        set -l part (string split -m 1 -- , $item)
        switch $part[1]
            case plain
                echo -- $option$part[2]
            case file
                for path in (__fish_complete_path (string replace -- "$option" '' $typed))
                    echo -- $option$path
                end
            case dir
                for path in (__fish_complete_directories (string replace -- "$option" '' $typed) '')
                    echo -- $option$path
                end
        end
    end
end

complete --no-files --keep-order --command @NAME@ --arguments '(_cliptools_complete)'
"""


def all_scripts(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name below completion/ and text of each script: bash and fish look for a file by the command's name."""
    names = tuple(names)
    yield "zsh/_cliptools", f"#compdef {' '.join(names)}\n{ORIGIN}\n{ZSH}"
    for name in names:
        yield f"bash/{name}", f"# bash completion for {name}\n{ORIGIN}\n{BASH.replace('@NAME@', name)}"
        yield f"fish/{name}.fish", f"# fish completion for {name}\n{ORIGIN}\n{FISH.replace('@NAME@', name)}"
