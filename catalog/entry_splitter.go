package catalog

import (
	"fmt"
	"math"
)

// ServiceSplitter spreads the requests for a service by weight.
type ServiceSplitter struct {
	EntryHead
	Splits []*ServiceSplit
}

// ServiceSplit is one share.
type ServiceSplit struct {
	Weight          float32              // percent, in steps of 0.01
	Service         Name                 `json:",omitempty"` // empty: the splitter's own
	ServiceSubset   string               `json:",omitempty"`
	Namespace       string               `json:",omitempty"`
	Partition       string               `json:",omitempty"`
	RequestHeaders  *HTTPHeaderModifiers `json:",omitempty"`
	ResponseHeaders *HTTPHeaderModifiers `json:",omitempty"`
}

// EntryKind implements ConfigEntry.
func (*ServiceSplitter) EntryKind() string { return KindServiceSplitter }

// Normalize implements ConfigEntry: weights are rounded to their steps.
func (e *ServiceSplitter) Normalize() {
	for _, s := range e.Splits {
		if s != nil {
			s.Weight = roundWeight(float64(s.Weight))
		}
	}
}

// roundWeight rounds to hundredths of a percent.
func roundWeight(w float64) float32 { return float32(math.Round(w*100) / 100) }

// Validate implements ConfigEntry.
func (e *ServiceSplitter) Validate() error {
	if err := validEntryName(e.Name); err != nil {
		return err
	}
	if len(e.Splits) == 0 {
		return Invalidf("no splits configured")
	}
	sum := 0
	seen := map[[2]string]bool{}
	for i, s := range e.Splits {
		at := fmt.Sprintf("Splits[%d]", i)
		if s == nil {
			return Invalidf("%s is empty", at)
		}
		w := float64(s.Weight)
		if math.IsNaN(w) || w < 0 || w > 100 {
			return Invalidf("%s: Weight must be from 0 to 100, it is %v", at, s.Weight)
		}
		sum += int(math.Round(w * 100))
		name := s.Service
		if name == "" {
			name = e.Name
		}
		if seen[[2]string{name, s.ServiceSubset}] {
			return Invalidf("split destination occurs more than once: service=%q, subset=%q", name, s.ServiceSubset)
		}
		seen[[2]string{name, s.ServiceSubset}] = true
		if err := s.validate(at); err != nil {
			return err
		}
	}
	if sum != 100*100 {
		return Invalidf("the sum of all split weights must be 100, not %f", float64(sum)/100)
	}
	return nil
}

func (s *ServiceSplit) validate(at string) error {
	if err := onlyDefaultTenancy(at, s.Namespace, s.Partition); err != nil {
		return err
	}
	if err := validOptionalName(at+".Service", s.Service); err != nil {
		return err
	}
	if s.Service == Wildcard {
		return Invalidf("%s.Service must name one service", at)
	}
	if err := s.RequestHeaders.validate(at + ".RequestHeaders"); err != nil {
		return err
	}
	return s.ResponseHeaders.validate(at + ".ResponseHeaders")
}
