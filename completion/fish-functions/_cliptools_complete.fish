function _cliptools_complete --description 'What may stand at the cursor of a clip-* command'
    # Asked of the command itself through click: a line for each word, plain,WORD<tab>meaning, or file, or dir, where fish
    # itself is to look.
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
