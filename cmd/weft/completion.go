package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
)

//go:embed completion
var completions embed.FS

func completionCommand() *cli.Command {
	return spec{
		name: "completion", usage: "Print what lets a shell complete weft's commands", args: "SHELL", min: 1, max: 1,
		about:    "Prints the completion of a shell: bash, zsh or fish. weft -autocomplete-install installs them.",
		examples: []string{"source <(weft completion bash)", "weft completion fish | source"},
		action: func(c *cli.Context) error {
			text, err := completions.ReadFile("completion/weft." + c.Args().First())
			if err != nil {
				return usagef(c, "%q is none of bash, zsh and fish", c.Args().First())
			}
			_, err = c.App.Writer.Write(text)
			return err
		},
	}.build()
}

// Flags of the program itself, as Consul has them.
func completionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "autocomplete-install", Usage: "Install completion for the shells of this user."},
		&cli.BoolFlag{Name: "autocomplete-uninstall", Usage: "Remove it again."},
	}
}

// zshLine is what completion adds to .zshrc, which has no folder to drop a file in.
const zshLine = "command -v weft >/dev/null && source <(weft completion zsh) # weft -autocomplete-install\n"

// installCompletion writes, or removes, the files of every shell that this user has
// a configuration of.
func installCompletion(c *cli.Context, env func(string) string, install bool) error {
	home := env("HOME")
	if home == "" {
		return errors.New("HOME is not set, so there is no place to install completion")
	}
	or := func(name, path string) string {
		if v := env(name); v != "" {
			return v
		}
		return filepath.Join(home, path)
	}
	for shell, file := range map[string]string{
		"bash": filepath.Join(or("XDG_DATA_HOME", ".local/share"), "bash-completion/completions/weft"),
		"fish": filepath.Join(or("XDG_CONFIG_HOME", ".config"), "fish/completions/weft.fish"),
	} {
		if err := placeCompletion(shell, file, install); err != nil {
			return err
		}
	}
	if err := editZshrc(filepath.Join(or("ZDOTDIR", ""), ".zshrc"), install); err != nil {
		return err
	}
	done := "Completion for bash, zsh and fish is installed. It works in shells that start from now on."
	if !install {
		done = "Completion for bash, zsh and fish is removed."
	}
	_, err := fmt.Fprintln(c.App.Writer, done)
	return err
}

func placeCompletion(shell, file string, install bool) error {
	if !install {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := completions.ReadFile("completion/weft." + shell)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o644)
}

// editZshrc adds or removes our line of an existing .zshrc. Who has none does not
// use zsh.
func editZshrc(file string, install bool) error {
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(string(old), zshLine, "")
	if install {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += zshLine
	}
	if text == string(old) {
		return nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(text), info.Mode().Perm())
}
