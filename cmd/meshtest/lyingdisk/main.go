// Command lyingdisk mounts a directory through FUSE and does to it what disks do:
// it fails a sync, lets syncs hang, and forgets, as a power cut does, all that was
// written and not synced. The fault tests run it. It is a module of its own, so
// that what it needs never joins the product's.
//
//	lyingdisk <directory> <mount point>
//
// It answers each line that it reads with a line. "eio N" fails the Nth sync from
// now; "stall 5s" lets every sync take that long from now on, "stall 0s" ends it;
// "cut" lets no sync end any more, and "forget" undoes all writes that were not
// synced, after which it works again; "syncs" tells how many there were.
// It ends, and unmounts, when its input does.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: lyingdisk <directory> <mount point>")
		os.Exit(2)
	}
	d := &disk{root: os.Args[1], pending: map[uint64]*unsynced{}}
	server, err := mount(d, os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "lyingdisk:", err)
		os.Exit(1)
	}
	fmt.Println("mounted")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(d.command(strings.Fields(in.Text())))
	}
	if err := server.Unmount(); err != nil {
		_ = syscall.Unmount(os.Args[2], syscall.MNT_DETACH)
	}
}

func mount(d *disk, at string) (*fuse.Server, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(d.root, &st); err != nil {
		return nil, err
	}
	root := &fs.LoopbackRoot{Path: d.root, Dev: uint64(st.Dev)}
	root.NewNode = func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{LoopbackNode: fs.LoopbackNode{RootData: r}, d: d}
	}
	top := root.NewNode(root, nil, "", &st)
	root.RootNode = top
	var none time.Duration
	return fs.Mount(at, top, &fs.Options{
		EntryTimeout: &none, AttrTimeout: &none, NullPermissions: true,
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "lyingdisk", Name: "lyingdisk"},
	})
}

const block = 4096

// disk is what is known of the directory.
type disk struct {
	root string

	mu      sync.Mutex
	eio     int // fails when it comes to 0; 0 is off
	stall   time.Duration
	cut     bool
	syncs   int
	pending map[uint64]*unsynced // by inode
}

// unsynced is what a file held before the writes that were not synced yet.
type unsynced struct {
	f    *os.File
	size int64
	old  map[int64][]byte // by block
}

func (d *disk) command(words []string) string {
	if len(words) == 0 {
		return "what?"
	}
	arg := ""
	if len(words) > 1 {
		arg = words[1]
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch words[0] {
	case "eio":
		n, err := strconv.Atoi(arg)
		if err != nil {
			return err.Error()
		}
		d.eio = n
	case "stall":
		t, err := time.ParseDuration(arg)
		if err != nil {
			return err.Error()
		}
		d.stall = t
	case "cut":
		d.cut = true
	case "forget":
		n, err := d.forget()
		d.cut = false
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("ok %d", n)
	case "syncs":
		return fmt.Sprintf("ok %d", d.syncs)
	default:
		return "what?"
	}
	return "ok"
}

// forget undoes what was not synced and says how many blocks that were.
func (d *disk) forget() (blocks int, err error) {
	for ino, u := range d.pending {
		for at, b := range u.old {
			blocks++
			if _, err := u.f.WriteAt(b, at*block); err != nil {
				return blocks, err
			}
		}
		if err := u.f.Truncate(u.size); err != nil {
			return blocks, err
		}
		_ = u.f.Close()
		delete(d.pending, ino)
	}
	return blocks, nil
}

// before keeps what a range of f holds, before it is changed.
func (d *disk) before(f *os.File, off, n int64) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return fs.ToErrno(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.pending[st.Ino]
	if u == nil {
		own, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
		if err != nil {
			return fs.ToErrno(err)
		}
		u = &unsynced{f: own, size: st.Size, old: map[int64][]byte{}}
		d.pending[st.Ino] = u
	}
	for at := off / block; at*block < off+n && at*block < u.size; at++ {
		if u.old[at] != nil {
			continue
		}
		b := make([]byte, min(block, u.size-at*block))
		if _, err := u.f.ReadAt(b, at*block); err != nil {
			return fs.ToErrno(err)
		}
		u.old[at] = b
	}
	return 0
}

// sync is what a sync does first; the error is that of the sync.
func (d *disk) sync() syscall.Errno {
	d.mu.Lock()
	d.syncs++
	stall, fails := d.stall, false
	if d.eio > 0 {
		d.eio--
		fails = d.eio == 0
	}
	d.mu.Unlock()
	for end := time.Now().Add(stall); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		d.mu.Lock()
		over := d.stall == 0
		d.mu.Unlock()
		if over {
			break
		}
	}
	for d.isCut() {
		fails = true
		time.Sleep(5 * time.Millisecond)
	}
	if fails {
		return syscall.EIO
	}
	return 0
}

func (d *disk) isCut() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cut
}

// synced forgets what is on the disk now.
func (d *disk) synced(f *os.File) {
	var st syscall.Stat_t
	if syscall.Fstat(int(f.Fd()), &st) != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.pending[st.Ino]; u != nil {
		_ = u.f.Close()
		delete(d.pending, st.Ino)
	}
}

type node struct {
	fs.LoopbackNode
	d *disk
}

var (
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
)

// Open implements fs.NodeOpener.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, err := os.OpenFile(filepath.Join(n.d.root, n.Path(n.Root())), int(flags)&^(syscall.O_APPEND|fuse.FMODE_EXEC), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return newFile(n.d, f), 0, 0
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, fh, _, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	if r, ok := fh.(fs.FileReleaser); ok {
		r.Release(ctx)
	}
	f, err := os.OpenFile(filepath.Join(n.d.root, n.Path(n.Root()), name), os.O_RDWR, 0)
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	return inode, newFile(n.d, f), 0, 0
}

// Setattr implements fs.NodeSetattrer: a truncation is a write.
func (n *node) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		f, err := os.OpenFile(filepath.Join(n.d.root, n.Path(n.Root())), os.O_RDWR, 0)
		if err != nil {
			return fs.ToErrno(err)
		}
		errno := n.d.before(f, int64(size), 1<<40)
		_ = f.Close()
		if errno != 0 {
			return errno
		}
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

// Fsync implements fs.NodeFsyncer, for directories.
func (n *node) Fsync(_ context.Context, fh fs.FileHandle, _ uint32) syscall.Errno {
	if f, ok := fh.(*file); ok {
		return f.Fsync(context.Background(), 0)
	}
	return n.d.sync()
}

// file is an open file. It has not all that a file could: what it lacks would go
// past it to the directory.
type file struct {
	d    *disk
	f    *os.File
	once sync.Once
}

func newFile(d *disk, f *os.File) *file { return &file{d: d, f: f} }

var (
	_ fs.FileReader    = (*file)(nil)
	_ fs.FileWriter    = (*file)(nil)
	_ fs.FileFsyncer   = (*file)(nil)
	_ fs.FileReleaser  = (*file)(nil)
	_ fs.FileAllocater = (*file)(nil)
	_ fs.FileFlusher   = (*file)(nil)
)

// Read implements fs.FileReader.
func (f *file) Read(_ context.Context, b []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultFd(f.f.Fd(), off, len(b)), 0
}

// Write implements fs.FileWriter.
func (f *file) Write(_ context.Context, b []byte, off int64) (uint32, syscall.Errno) {
	if errno := f.d.before(f.f, off, int64(len(b))); errno != 0 {
		return 0, errno
	}
	n, err := f.f.WriteAt(b, off)
	return uint32(n), fs.ToErrno(err)
}

// Fsync implements fs.FileFsyncer. One that fails loses what it should have kept,
// as Linux does.
func (f *file) Fsync(context.Context, uint32) syscall.Errno {
	if errno := f.d.sync(); errno != 0 {
		return errno
	}
	f.d.synced(f.f)
	return 0
}

// Allocate implements fs.FileAllocater.
func (f *file) Allocate(_ context.Context, off, size uint64, mode uint32) syscall.Errno {
	return fs.ToErrno(syscall.Fallocate(int(f.f.Fd()), mode, int64(off), int64(size)))
}

// Flush implements fs.FileFlusher.
func (f *file) Flush(context.Context) syscall.Errno { return 0 }

// Release implements fs.FileReleaser.
func (f *file) Release(context.Context) syscall.Errno {
	f.once.Do(func() { _ = f.f.Close() })
	return 0
}
