package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteReplacesWhole(t *testing.T) {
	for name, write := range map[string]func(string, []byte) error{"Write": Write, "Swap": Swap} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "made", "on the way")
			file := filepath.Join(dir, "f")
			for _, text := range []string{"a long first text", "short", ""} {
				if err := write(file, []byte(text)); err != nil {
					t.Fatal(err)
				}
				if got := read(t, file); got != text {
					t.Fatalf("%q, want %q", got, text)
				}
			}
			info, err := os.Stat(file)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
			}
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the folder has mode %v (%v), want 0700", info.Mode(), err)
			}
			if got := names(t, dir); len(got) != 1 {
				t.Errorf("%q are there, want the file alone", got)
			}
		})
	}
}

func TestWriteNamesTheFileThatWasMeant(t *testing.T) {
	dir := t.TempDir()
	for name, file := range map[string]string{
		"a folder lies there":      filepath.Join(dir, "folder"),
		"a file lies in the way":   filepath.Join(dir, "plain", "f"),
		"the name is too long":     filepath.Join(dir, strings.Repeat("x", 300)),
		"no folder can be made so": filepath.Join(dir, "plain", "deep", "f"),
	} {
		t.Run(name, func(t *testing.T) {
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, "folder", "full"), 0o700),
				os.WriteFile(filepath.Join(dir, "plain"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			err := Write(file, []byte("x"))
			if err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), tempPrefix) {
				t.Errorf("%v", err)
			}
			if got := names(t, dir); len(got) != 2 {
				t.Errorf("%q are left", got)
			}
		})
	}
}

// TestFullDisk has each step find no space left.
func TestFullDisk(t *testing.T) {
	for _, step := range []string{"create", "write", "sync", "close", "rename", "syncDir"} {
		t.Run(step, func(t *testing.T) {
			d := newModel(map[string]string{"f": "old"})
			d.fail = step
			err := replace(d, "dir/f", []byte("new"), true)
			if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "dir/f") {
				t.Errorf("%v, want no space left on device, and the name of the file", err)
			}
			if len(d.names) != 1 {
				t.Errorf("%v are left", d.names)
			}
			if got := string(d.files[d.names["f"]].now); got != "old" && step != "syncDir" {
				t.Errorf("the file holds %q", got)
			}
		})
	}
}

// model is a disk that does what it must: a content that was not synced may be there,
// cut off or not at all after a power cut, and so may a name whose folder was not synced.
type model struct {
	files  map[int]*content
	names  map[string]int // of files
	synced map[string]int // names that outlive a power cut
	next   int
	fail   string // the step that finds no space
	steps  int
	cutAt  int // no step from this one on does anything; 0 is never
}

type content struct{ now, synced []byte }

func newModel(old map[string]string) *model {
	d := &model{files: map[int]*content{}, names: map[string]int{}, synced: map[string]int{}}
	for name, text := range old {
		d.next++
		d.files[d.next] = &content{[]byte(text), []byte(text)}
		d.names[name], d.synced[name] = d.next, d.next
	}
	return d
}

var errCut = errors.New("the power is cut")

func (d *model) step(name string) error {
	d.steps++
	if d.cutAt > 0 && d.steps >= d.cutAt {
		return errCut
	}
	if d.fail == name {
		return &fs.PathError{Op: name, Path: "somewhere", Err: syscall.ENOSPC}
	}
	return nil
}

func (d *model) create(string) (pending, error) {
	if err := d.step("create"); err != nil {
		return nil, err
	}
	d.next++
	d.files[d.next], d.names["temp"] = &content{}, d.next
	return &modelFile{d, d.next}, nil
}

func (d *model) mkdir(string) error { return errors.New("there is nothing to make") }

func (d *model) rename(from, to string) error {
	if err := d.step("rename"); err != nil {
		return err
	}
	d.names[filepath.Base(to)] = d.names[filepath.Base(from)]
	delete(d.names, filepath.Base(from))
	return nil
}

func (d *model) remove(file string) error {
	if err := d.step("remove"); err != nil {
		return err
	}
	delete(d.names, filepath.Base(file))
	return nil
}

func (d *model) syncDir(string) error {
	if err := d.step("syncDir"); err != nil {
		return err
	}
	d.synced = map[string]int{}
	for name, i := range d.names {
		d.synced[name] = i
	}
	return nil
}

// after are all contents that the file may have once the power is back; "none" is none.
func (d *model) after(name string) map[string]bool {
	out := map[string]bool{}
	for _, names := range []map[string]int{d.names, d.synced} {
		i, ok := names[name]
		if !ok {
			out["none"] = true
			continue
		}
		out[string(d.files[i].now)] = true
		out[string(d.files[i].synced)] = true
	}
	return out
}

type modelFile struct {
	d *model
	i int
}

func (f *modelFile) Name() string { return "temp" }

func (f *modelFile) Write(b []byte) (int, error) {
	if err := f.d.step("write"); err != nil {
		f.d.files[f.i].now = b[:len(b)/2]
		return len(b) / 2, err
	}
	f.d.files[f.i].now = b
	return len(b), nil
}

func (f *modelFile) Sync() error {
	if err := f.d.step("sync"); err != nil {
		return err
	}
	f.d.files[f.i].synced = f.d.files[f.i].now
	return nil
}

func (f *modelFile) Close() error { return f.d.step("close") }

// TestPowerCut cuts the power before each step: what is there afterwards is the old
// content or the new one, and the new one alone once the write was answered for.
func TestPowerCut(t *testing.T) {
	whole := newModel(map[string]string{"f": "old"})
	if err := replace(whole, "dir/f", []byte("new"), true); err != nil {
		t.Fatal(err)
	}
	if got := whole.after("f"); len(got) != 1 || !got["new"] {
		t.Errorf("after the write was answered for a power cut may leave %v", got)
	}
	for cut := 1; cut <= whole.steps; cut++ {
		d := newModel(map[string]string{"f": "old"})
		d.cutAt = cut
		if err := replace(d, "dir/f", []byte("new"), true); err == nil {
			t.Errorf("cut at step %d: no error", cut)
		}
		for text := range d.after("f") {
			if text != "old" && text != "new" {
				t.Errorf("cut at step %d: %q may be there", cut, text)
			}
		}
	}
}

func TestRemove(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := Write(file, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 { // once there, once gone
		if err := Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestSweep(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{
		filepath.Join(dir, tempPrefix+"1"): 2 * time.Hour,
		filepath.Join(sub, tempPrefix+"2"): 2 * time.Hour,
		filepath.Join(sub, tempPrefix+"3"): time.Minute, // of a process that still writes
		filepath.Join(sub, "kept"):         1000 * time.Hour,
	} {
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Chtimes(name, now, now.Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir, now); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(append(names(t, dir), names(t, sub)...), " "); got != "sub "+tempPrefix+"3 kept" {
		t.Errorf("%s are left", got)
	}
	if err := Sweep(filepath.Join(dir, "none"), now); err != nil {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	f := File{Path: filepath.Join(dir, "f"), Most: 5, Remedy: "restore it from a copy"}
	if found, err := f.Read(func([]byte) error { t.Error("there is nothing to parse"); return nil }); found || err != nil {
		t.Errorf("%v, %v for no file", found, err)
	}
	for name, c := range map[string]struct {
		text  string
		parse error
		want  string
	}{
		"whole":     {text: "12345"},
		"empty":     {text: ""},
		"too large": {text: "123456", want: "6 bytes, at most 5"},
		"damaged":   {text: "1", parse: errors.New("it is no number"), want: "it is no number"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Write(f.Path, []byte(c.text)); err != nil {
				t.Fatal(err)
			}
			got := ""
			found, err := f.Read(func(b []byte) error { got = string(b); return c.parse })
			if !found || c.want == "" && (err != nil || got != c.text) {
				t.Fatalf("%v, %v, %q", found, err, got)
			}
			if c.want == "" {
				return
			}
			for _, part := range []string{f.Path, "damaged", c.want, f.Remedy} {
				if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), part) {
					t.Errorf("%v does not say %q", err, part)
				}
			}
		})
	}
	if _, err := (File{Path: dir, Most: 5}).Bytes(); err == nil {
		t.Error("a folder was read")
	}
}

func TestReadPrivate(t *testing.T) {
	f := File{Path: filepath.Join(t.TempDir(), "f"), Most: 9, Private: true}
	if err := Write(f.Path, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	var kept []byte
	if _, err := f.Read(func(b []byte) error { kept = b; return nil }); err != nil || strings.Contains(string(kept), "s") {
		t.Errorf("%v; %q stays in memory", err, kept)
	}
	if err := os.Chmod(f.Path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Bytes(); err == nil || !strings.Contains(err.Error(), "chmod 600 "+f.Path) {
		t.Errorf("%v", err)
	}
	// systemd grants a credential by an ACL: its mask shows as the group's bits.
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(f.Path))
	if _, err := f.Bytes(); err != nil {
		t.Error(err)
	}
}
