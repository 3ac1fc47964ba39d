# Thin: what is real is behind `swift build`, `swift test` and baton-demo.
#
#   make                   builds .build/release/baton, its modules and side tools
#   make run               boots Debian, replaces the VMM three times under it, opens the guest's console
#     BATCH=1              ends instead, with status 0 only if nothing was lost
#     BIOS=opensbi|FILE    firmware in M-mode instead of the built-in SBI (opensbi: Debian's, installed if missing)
#     RUNFLAGS=...         more options for baton-demo run (see its --help)
#   make test              all tests, against the release build
#   make bench             how fast it is, and the pause of a restart beside QEMU's cpr-exec (downloaded once)
#   make clean

SWIFT := $(shell PATH="$$PATH:/opt/swift/usr/bin" command -v swift)
export PATH := $(PATH):/opt/swift/usr/bin

# What a Debian 12 with a Swift toolchain may lack: the toolchain's own libraries, what it links
# with, git and certificates for SwiftPM's dependencies.
PACKAGES := libcurl4 libncurses6 libsqlite3-0 libxml2 binutils libc6-dev libstdc++-12-dev libffi-dev git ca-certificates
OPENSBI := /usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin

ifeq ($(BIOS),opensbi)
RUNPACKAGES := opensbi
FIRMWARE := $(OPENSBI)
else
FIRMWARE := $(or $(BIOS),default)
endif

.PHONY: all build packages run-packages run test bench clean

all: build

build: packages
	$(SWIFT) build -c release

# Installs what is missing of $(PACKAGES), and asks for root only then.
define install-missing
	@missing=""; for p in $(1); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" != 0 ]; then \
	        echo "make: missing packages; as root run: apt-get install$$missing" >&2; exit 1; fi; \
	    echo "installing$$missing"; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null || \
	    { apt-get update -qq && \
	      DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; }; \
	fi
endef

packages:
	@[ -n "$(SWIFT)" ] || { echo "make: no swift in PATH, nor in /opt/swift/usr/bin" >&2; exit 1; }
	$(call install-missing,$(PACKAGES))

run-packages: build
	$(call install-missing,$(RUNPACKAGES))

run: run-packages
	@.build/release/baton-demo run --bios $(FIRMWARE) $(if $(BATCH),--batch) $(RUNFLAGS)

# Without testable imports the tests use the modules as they were built above; with them all is built
# again, in another way than it is used.
test: build
	$(SWIFT) test -c release --disable-testable-imports

bench: build
	@.build/release/baton-demo bench

clean:
	rm -rf .build Sources/Runtime/.build .cache
