package checks

import "github.com/weftmesh/weft/catalog"

// thresholds turn results into a status: so many good ones in a row before passing,
// so many bad ones before warning and before critical. In between, the status stays.
// The counters start full, so that the very first result counts at once.
type thresholds struct {
	report                             Report
	passingAfter, warnAfter, critAfter int
	successes, failures                int
}

func newThresholds(def *catalog.CheckDefinition, report Report) *thresholds {
	t := &thresholds{
		report:       report,
		passingAfter: def.SuccessBeforePassing,
		warnAfter:    def.FailuresBeforeWarning,
		critAfter:    def.FailuresBeforeCritical,
		successes:    def.SuccessBeforePassing,
		failures:     def.FailuresBeforeCritical,
	}
	if t.warnAfter == 0 {
		t.warnAfter = t.critAfter
	}
	return t
}

// result judges one run. A warning is a success: the target answered.
func (t *thresholds) result(status catalog.Status, output string) {
	if status == catalog.StatusPassing || status == catalog.StatusWarning {
		t.failures = 0
		t.successes = min(t.successes+1, t.passingAfter+1)
		if t.successes >= t.passingAfter {
			t.report(status, output)
		}
		return
	}
	t.successes = 0
	t.failures = min(t.failures+1, t.critAfter+1)
	switch {
	case t.failures >= t.critAfter:
		t.report(catalog.StatusCritical, output)
	case t.failures >= t.warnAfter:
		t.report(catalog.StatusWarning, output)
	}
}
