//go:build next

package catalog

// CmdNote is a command that the version before this one does not know.
const CmdNote CommandType = 0x7000

// Note changes nothing, so that servers which do not know it may skip it.
type Note struct{ Text string }

// CommandType implements Command.
func (*Note) CommandType() CommandType { return CmdNote }

// Validate implements Command.
func (*Note) Validate() error { return nil }

// IgnoreIfUnknown tells servers that do not know the command to skip it.
func (*Note) IgnoreIfUnknown() bool { return true }

type laterSyncNode struct{ Later string }

func laterCommand(t CommandType) Command {
	if t == CmdNote {
		return &Note{}
	}
	return nil
}

// LaterNote is the command that only the next version knows; nil in this one.
func LaterNote() Command { return &Note{Text: "a version follows another"} }
