package config

import (
	"fmt"
	"io"
	"strings"
)

// Reference writes the table of keys as Markdown.
func Reference(w io.Writer) error {
	groups := []struct {
		title, intro string
		status       Status
	}{
		{"Keys that act", "", Effective},
		{"Keys that are known, and will act in a later version", "They are checked for their type. Setting one writes one warning.", Accepted},
		{"Keys that are ignored", "Files written for Consul carry them. Setting one writes one warning.", Ignored},
		{"Keys that are refused", "The agent does not start while one is set.", Refused},
	}
	for _, g := range groups {
		var b strings.Builder
		fmt.Fprintf(&b, "## %s\n\n", g.title)
		if g.intro != "" {
			fmt.Fprintf(&b, "%s\n\n", g.intro)
		}
		b.WriteString("| key | type | default | flag | meaning |\n|---|---|---|---|---|\n")
		for _, k := range Keys() {
			if k.Status != g.status {
				continue
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", k.Name, k.Type, code(k.Default), code(dash(k.Flag)), cell(k.meaning()))
		}
		b.WriteString("\n")
		if _, err := io.WriteString(w, b.String()); err != nil {
			return err
		}
	}
	return nil
}

func (k Key) meaning() string {
	s := k.Doc
	if k.Note != "" {
		s += " " + strings.ToUpper(k.Note[:1]) + k.Note[1:] + "."
	}
	if k.Reload {
		s += " Taken over by a reload."
	}
	return s
}

func dash(flag string) string {
	if flag == "" {
		return ""
	}
	return "-" + flag
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
