package httpapi

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type hostView struct {
	Memory         memoryView
	CPU            []cpuView
	Host           machineView
	Disk           diskView
	CollectionTime int64
	Errors         []string
}

type memoryView struct {
	Total       uint64  `json:"total"`
	Available   uint64  `json:"available"`
	Used        uint64  `json:"used"`
	UsedPercent float64 `json:"usedPercent"`
	Free        uint64  `json:"free"`
}

type cpuView struct {
	CPU       int     `json:"cpu"`
	VendorID  string  `json:"vendorId"`
	Family    string  `json:"family"`
	Model     string  `json:"model"`
	ModelName string  `json:"modelName"`
	Mhz       float64 `json:"mhz"`
}

type machineView struct {
	Hostname      string `json:"hostname"`
	Uptime        uint64 `json:"uptime"`
	BootTime      uint64 `json:"bootTime"`
	OS            string `json:"os"`
	KernelVersion string `json:"kernelVersion"`
	KernelArch    string `json:"kernelArch"`
}

type diskView struct {
	Path        string  `json:"path"`
	Total       uint64  `json:"total"`
	Free        uint64  `json:"free"`
	Used        uint64  `json:"used"`
	UsedPercent float64 `json:"usedPercent"`
}

// host shows the machine. What cannot be read is named in Errors, and the rest is
// shown.
func (a agentAPI) host(*call) (any, error) {
	v := hostView{CollectionTime: time.Now().UnixNano()}
	note := func(err error) {
		if err != nil {
			v.Errors = append(v.Errors, err.Error())
		}
	}
	note(readMemory(&v.Memory))
	cpus, err := readCPUs()
	v.CPU = notNil(cpus)
	note(err)
	note(readMachine(&v.Host))
	note(readDisk("/", &v.Disk))
	return v, nil
}

func readMemory(m *memoryView) error {
	err := eachField("/proc/meminfo", func(key, value string) {
		kib, _ := strconv.ParseUint(strings.TrimSuffix(value, " kB"), 10, 64)
		switch key {
		case "MemTotal":
			m.Total = kib << 10
		case "MemFree":
			m.Free = kib << 10
		case "MemAvailable":
			m.Available = kib << 10
		}
	})
	if m.Total > 0 && m.Available <= m.Total {
		m.Used = m.Total - m.Available
		m.UsedPercent = float64(m.Used) / float64(m.Total) * 100
	}
	return err
}

func readCPUs() ([]cpuView, error) {
	var out []cpuView
	err := eachField("/proc/cpuinfo", func(key, value string) {
		if key == "processor" {
			n, _ := strconv.Atoi(value)
			out = append(out, cpuView{CPU: n})
		}
		if len(out) == 0 {
			return
		}
		c := &out[len(out)-1]
		switch key {
		case "vendor_id":
			c.VendorID = value
		case "cpu family":
			c.Family = value
		case "model":
			c.Model = value
		case "model name":
			c.ModelName = value
		case "cpu MHz":
			c.Mhz, _ = strconv.ParseFloat(value, 64)
		}
	})
	return out, err
}

func readMachine(m *machineView) error {
	m.OS, m.KernelArch = runtime.GOOS, runtime.GOARCH
	var err error
	if m.Hostname, err = os.Hostname(); err != nil {
		return err
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	m.KernelVersion = strings.TrimSpace(string(release))
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	seconds, _, _ := strings.Cut(string(uptime), ".")
	m.Uptime, err = strconv.ParseUint(seconds, 10, 64)
	m.BootTime = uint64(time.Now().Unix()) - m.Uptime
	return err
}

func readDisk(path string, d *diskView) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	size := uint64(st.Bsize) //nolint:gosec // a block size is positive
	d.Path, d.Total, d.Free = path, st.Blocks*size, st.Bavail*size
	d.Used = (st.Blocks - st.Bfree) * size
	if d.Total > 0 {
		d.UsedPercent = float64(d.Used) / float64(d.Total) * 100
	}
	return nil
}

// eachField calls f for every "key: value" line of a file.
func eachField(path string, f func(key, value string)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it was only read
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		f(strings.TrimSpace(key), strings.TrimSpace(value))
	}
	return lines.Err()
}
