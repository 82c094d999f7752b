package tunnel

func loops(c Config) (Driver, error) { return NewLoops(c, 2) }

var driverPairs = []driverPair{
	{"goroutines", goroutines, goroutines},
	{"loops", loops, loops},
	{"loops to goroutines", loops, goroutines},
	{"goroutines to loops", goroutines, loops},
}
