package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/weftmesh/weft/catalog"
)

// decode reads the request's body, one JSON object, strictly into out.
func (c *call) decode(out any) error {
	raw, err := c.object()
	if err != nil {
		return err
	}
	return decodeInto(raw, out)
}

// object reads the request's body as one JSON object.
func (c *call) object() (map[string]any, error) {
	b, err := c.body()
	if err != nil {
		return nil, err
	}
	raw, err := catalog.ParseJSON(b)
	if err != nil {
		return nil, decodeError(b, err)
	}
	return raw, nil
}

// body reads the whole of the request's body; the route's limit bounds it.
func (c *call) body() ([]byte, error) {
	b, err := io.ReadAll(c.r.Body)
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, err
		}
		return nil, badRequest("Request decode failed: the body did not arrive: " + err.Error())
	}
	setReadDeadline(c.w, time.Time{}) // the work that follows takes what it takes
	return b, nil
}

func decodeInto(raw map[string]any, out any) error {
	if err := catalog.Decode(raw, out); err != nil {
		return badRequest("Request decode failed: " + strings.TrimPrefix(err.Error(), catalog.ErrInvalid.Error()+": "))
	}
	return nil
}

// decodeError words a syntax error as encoding/json does, which clients show.
func decodeError(b []byte, err error) error {
	text := err.Error()
	var typeErr *json.UnmarshalTypeError
	switch {
	case len(bytes.TrimSpace(b)) == 0:
		text = io.EOF.Error()
	case errors.As(err, &typeErr):
		text = "json: cannot unmarshal " + typeErr.Value + ": an object is wanted"
	}
	return badRequest("Request decode failed: " + strings.TrimPrefix(text, catalog.ErrInvalid.Error()+": "))
}

// each calls f for every object under the key of raw, be it one or a list.
func eachObject(raw map[string]any, key string, f func(map[string]any)) {
	for k, v := range raw {
		if !strings.EqualFold(strings.ReplaceAll(k, "_", ""), key) {
			continue
		}
		switch v := v.(type) {
		case map[string]any:
			f(v)
		case []any:
			for _, e := range v {
				if m, ok := e.(map[string]any); ok {
					f(m)
				}
			}
		}
	}
}
