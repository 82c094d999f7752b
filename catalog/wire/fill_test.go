package wire

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// filler fills values with random content by reflection, so that a field that is
// added to a noun is tested from then on. Opaque values hold what JSON can hold.
type filler struct {
	r     *rand.Rand
	depth int
}

func newFiller(seed uint64) *filler { return &filler{r: rand.New(rand.NewPCG(seed, 7))} }

func (f *filler) fill(p any) { f.value(reflect.ValueOf(p).Elem()) }

func (f *filler) value(v reflect.Value) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = f.time()
		return
	case *Command:
		x.Command = f.command()
		return
	case *catalog.Entry:
		if f.r.IntN(4) > 0 {
			e := &catalog.ServiceIntentions{}
			f.fill(e)
			x.ConfigEntry = e
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				f.value(v.Field(i))
			}
		}
	case reflect.Pointer:
		if f.depth < 4 && f.r.IntN(3) > 0 {
			f.depth++
			v.Set(reflect.New(v.Type().Elem()))
			f.value(v.Elem())
			f.depth--
		}
	case reflect.Slice:
		f.slice(v)
	case reflect.Map:
		f.mapping(v)
	case reflect.Interface:
		v.Set(reflect.ValueOf(f.opaque(0)))
	default:
		f.scalar(v)
	}
}

func (f *filler) slice(v reflect.Value) {
	switch f.r.IntN(3) {
	case 0: // nil
	case 1:
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	default:
		n := 1 + f.r.IntN(3)
		s := reflect.MakeSlice(v.Type(), n, n)
		f.depth++
		for i := range n {
			f.value(s.Index(i))
		}
		f.depth--
		v.Set(s)
	}
}

func (f *filler) mapping(v reflect.Value) {
	switch f.r.IntN(3) {
	case 0: // nil
	case 1:
		v.Set(reflect.MakeMap(v.Type()))
	default:
		m := reflect.MakeMap(v.Type())
		for range 1 + f.r.IntN(4) {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.value(k)
			if e.Kind() == reflect.Interface {
				if o := f.opaque(0); o != nil {
					e.Set(reflect.ValueOf(o))
				}
			} else {
				f.value(e)
			}
			m.SetMapIndex(k, e)
		}
		v.Set(m)
	}
}

func (f *filler) scalar(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(f.text())
	case reflect.Bool:
		v.SetBool(f.r.IntN(2) == 0)
	case reflect.Float64, reflect.Float32:
		v.SetFloat(f.r.NormFloat64())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n := int64(f.r.Uint64()) >> f.r.IntN(64)
		if !v.OverflowInt(n) {
			v.SetInt(n)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n := f.r.Uint64() >> f.r.IntN(64)
		if !v.OverflowUint(n) {
			v.SetUint(n)
		}
	default:
		panic(fmt.Sprintf("the filler does not know %s", v.Type()))
	}
}

// opaque is a value as encoding/json would have decoded it.
func (f *filler) opaque(depth int) any {
	n := 7
	if depth > 2 {
		n = 5
	}
	switch f.r.IntN(n) {
	case 0:
		return f.text()
	case 1:
		return f.r.NormFloat64()
	case 2:
		return float64(f.r.IntN(1 << 20)) // a whole number that must stay one in JSON
	case 3:
		return f.r.IntN(2) == 0
	case 4:
		return nil
	case 5:
		l := make([]any, f.r.IntN(3))
		for i := range l {
			l[i] = f.opaque(depth + 1)
		}
		return l
	default:
		m := map[string]any{}
		for range f.r.IntN(4) {
			m[f.text()] = f.opaque(depth + 1)
		}
		return m
	}
}

var words = []string{"", "web", "db", "Wörter – mit Pfeil →", "\x00", "a\tb", "<&>", "*", "127.0.0.1:80"}

func (f *filler) text() string {
	if f.r.IntN(8) == 0 {
		return fmt.Sprintf("%0*d", 1+f.r.IntN(400), f.r.IntN(100)) // past the short forms of lengths
	}
	return words[f.r.IntN(len(words))]
}

func (f *filler) time() time.Time {
	t := time.Unix(f.r.Int64N(1<<33), f.r.Int64N(1e9)).UTC()
	switch f.r.IntN(4) {
	case 0:
		return time.Time{}
	case 1:
		return t.In(time.FixedZone("", 3600*(f.r.IntN(24)-12)))
	default:
		return t
	}
}

func (f *filler) command() catalog.Command {
	all := commandTypes()
	c, err := catalog.NewCommand(all[f.r.IntN(len(all))])
	if err != nil {
		panic(err)
	}
	f.fill(c)
	return c
}

// commandTypes lists every command of this version.
func commandTypes() []catalog.CommandType {
	var out []catalog.CommandType
	for t := range catalog.CommandType(1000) {
		if _, err := catalog.NewCommand(t); err == nil {
			out = append(out, t)
		}
	}
	return out
}
