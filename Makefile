# make        builds every program into bin/
# make test   is what a change has to pass
# make jepsen breaks real clusters on purpose, for about two minutes, as root

VERSION     ?= 2.0
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 3s

# Plain go build and go test only: whatever is here can be typed by hand.
.PHONY: build test lint race sim fuzz jepsen demo bench clean

build:
	CGO_ENABLED=0 go build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/ ./cmd/...

test: lint race sim fuzz

lint:
	go vet ./...
	@unformatted=$$(go run $(GOFUMPT) -l .) && if [ -n "$$unformatted" ]; then \
		echo "not formatted; run: go run $(GOFUMPT) -w ."; echo "$$unformatted"; exit 1; fi
	go run $(STATICCHECK) ./...

# Some tests run programs, whose changes the cache does not see, and which the race
# detector has sleep for a second at their end. The tests that wait most begin first.
race:
	GORACE=atexit_sleep_ms=10 go test -race -count=1 ./systest ./...

# Without the race detector: the one on all processors, the other with 5,000 processes
# in place of 300.
sim:
	go test -count=1 -run Simulated ./cluster
	go test -count=1 -run '^(TestMachine|TestForkBombsDoNotEscape|TestHopper)$$' ./freezer

fuzz:
	scripts/fuzz $(FUZZTIME)

jepsen:
	go test -count=1 -tags jepsen -p 1 ./jepsen/run ./jepsen/versus
	go build -o bin/jx ./jepsen/cmd/jx
	bin/jx ci

demo: build
	scripts/demo

bench:
	go test -run '^$$' -bench . -benchmem ./...

clean:
	rm -rf bin
