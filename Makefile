# Thin: what is real is behind `swift build`, `swift test` and baton-demo.
#
#   make                   builds .build/release/baton, its modules and side tools
#   make run               boots Debian, replaces the VMM three times under it, opens the guest's console: for
#                          x86-64 if Linux runs under KVM here, which is tried, else for riscv64
#     MACHINE=virt|microvm the riscv64 machine, or the x86-64 one, which needs KVM
#     BATCH=1              ends instead, with status 0 only if nothing was lost
#     BIOS=opensbi|FILE    firmware in M-mode instead of the built-in SBI (opensbi: Debian's, installed if missing)
#     RUNFLAGS=...         more options for baton-demo run (see its --help)
#   make demo-peers        Debian with disk, shared directory and network elsewhere, over 200 updates
#   make test              all tests, against the release build; at the end, what was skipped and why
#     TESTFLAGS=...        more options for swift test, such as --filter UpdateTests
#     SANITIZE=...         address, undefined or thread: against a build of its own that is checked for such faults
#   make test-lab          Linux guests on a real KVM in an emulated PC (QEMU and kernels are downloaded once)
#     LABFLAGS=...         more options for baton-demo lab, such as --only boot
#   make test-skew REV=... a guest goes to and fro between this build and that of another revision, which is made first
#   make model             all orders of steps of the handover's protocol (spin): some minutes, see Tests/HandoverModel
#   make faults            updates, saves and loads with each of their system calls made to fail, once or from then on,
#                          or to be late (strace); an hour
#   make soak              guests under load, to whose VMMs something is done all the time, in random order (ten minutes)
#     HOURS=N, MINUTES=N   for so long
#     SEED=N               the steps of that seed
#     SOAKFLAGS=...        more options for baton-demo soak, such as --script FILE
#   make fuzz              libFuzzer on what guests, clients, files and peers say, each target for a minute
#     SECONDS=N            or so many seconds
#     TARGET=name          only this one, see Tests/Fuzzers
#   make lint              the formatter's findings (.swift-format); make format mends them
#   make bench             how fast it is, and the pause of a restart beside QEMU's cpr-exec (downloaded once)
#   make manual            manual pages and shell completions, in .build/manual
#   make deb               Debian packages of the release build, in .build/packages
#     DEBVERSION=...       their version (default: Baton's, the number of commits, the revision)
#   make install          executables, modules and what modules are built with, to $(DESTDIR)$(PREFIX)
#   make clean

SWIFT := $(shell PATH="$$PATH:/opt/swift/usr/bin" command -v swift)
export PATH := $(PATH):/opt/swift/usr/bin
# The toolchain's runtime libraries.
SWIFT_LIBS = $(abspath $(dir $(realpath $(SWIFT)))../lib/swift/linux)

# What a Debian 12 with a Swift toolchain may lack: the toolchain's own libraries, what it links
# with, git and certificates for SwiftPM's dependencies.
PACKAGES := libcurl4 libncurses6 libsqlite3-0 libxml2 binutils libc6-dev libstdc++-12-dev libffi-dev liburing-dev git ca-certificates
OPENSBI := /usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin

# The peers of demo-peers and of tests; Debian 13 has some of them in packages of their own.
PEERPACKAGES = qemu-system-common qemu-utils iproute2 iputils-ping $(shell apt-cache show virtiofsd >/dev/null 2>&1 && echo virtiofsd)
# What more the tests talk to.
TESTPACKAGES = $(PEERPACKAGES) passt opensbi seabios libjson-c-dev spin

ifeq ($(BIOS),opensbi)
RUNPACKAGES := opensbi
FIRMWARE := $(OPENSBI)
else
FIRMWARE := $(or $(BIOS),default)
endif

# qemu-system-riscv64, with which the harts are compared; Debian 13 has it in a package of its own.
TESTPACKAGES += $(or $(shell apt-cache search --names-only '^qemu-system-riscv$$' | cut -d' ' -f1),qemu-system-misc)

PREFIX ?= /usr/local
RELEASE := .build/release
INSTALLED := $(DESTDIR)$(PREFIX)
# What a module in Swift is compiled with: the targets of runtime and devices.
RUNTIME_MODULES := BatonRuntime BatonModules BatonCPR BatonDeviceKit BatonMachine BatonQMP BatonBase \
    BatonDevices InstructionSets PCI Serial Virtio
MODULE_KINDS := mode memory-backend preserver foreign machine device accel block

.PHONY: all build packages run-packages test-packages run demo-peers test test-lab test-skew model faults soak fuzz lint format \
    bench manual deb install clean

all: build

build: packages
	$(SWIFT) build -c release

# Installs what is missing of $(PACKAGES), and asks for root only then.
define install-missing
	missing=""; for p in $(1); do \
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
	@$(call install-missing,$(PACKAGES))

run-packages: build
	@$(call install-missing,$(RUNPACKAGES))

run: run-packages
	@.build/release/baton-demo run --machine $(or $(MACHINE),auto) --bios $(FIRMWARE) $(if $(BATCH),--batch) $(RUNFLAGS)

demo-peers: build
	@$(call install-missing,$(PEERPACKAGES))
	@.build/release/baton-demo peers

# Some tests end the VMM at a system call.
TESTPACKAGES += strace
# Those of the packages build and install them.
ifdef BATON_PACKAGE_TESTS
TESTPACKAGES += debhelper dh-exec patchelf dpkg-dev lintian systemd
endif
TESTPACKAGES += mandoc curl

# Tests without their peer are skipped by name, so these are no condition.
test-packages: packages
	@for p in $(TESTPACKAGES); do ( $(call install-missing,$$p) ) || echo "make: tests that need $$p are skipped"; done

ifdef SANITIZE
test: packages test-packages
	@Tests/Sanitizers/run.sh $(SANITIZE) $(TESTFLAGS)
else
# Without testable imports the tests use the modules as they were built above; with them all is built
# again, in another way than it is used.
test: build test-packages
	@.build/release/baton-demo peer qemu-system-riscv64 >/dev/null || \
	    echo "make: tests that need a newer QEMU than this Debian's are skipped"
	@.build/release/baton-demo tests -- $(SWIFT) test -c release --disable-testable-imports $(TESTFLAGS)
endif

test-lab: build
	@.build/release/baton-demo lab $(LABFLAGS)

# What another revision is built in, by its name, so that it is built once.
SKEW = .cache/revisions
test-skew: build
	@revision=$$(git rev-parse --verify --quiet '$(REV)^{commit}') && [ -n '$(REV)' ] || \
	    { echo "make: '$(REV)' is no commit of this repository: make test-skew REV=COMMIT" >&2; exit 2; }; \
	tree=$(SKEW)/$$revision; git worktree prune; \
	[ -d $$tree ] || git worktree add --quiet --detach $$tree $$revision || exit 1; \
	[ -x $$tree/.build/release/baton ] || $(SWIFT) build -c release --package-path $$tree || exit 1; \
	BATON_OTHER_BUILD=$(CURDIR)/$$tree/.build/release \
	    $(SWIFT) test -c release --disable-testable-imports --filter SkewTests

faults: build test-packages
	BATON_EVERY_CALL=1 $(SWIFT) test -c release --disable-testable-imports --filter FailedCallTests

soak: build
	@.build/release/baton-demo soak $(if $(HOURS),--hours $(HOURS)) $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(SEED),--seed $(SEED)) $(SOAKFLAGS)

# Nothing of it needs a build.
model:
	@$(call install-missing,spin libc6-dev)
	@Tests/HandoverModel/search.sh --all

# Its first build takes minutes; not a part of any other target.
SECONDS = 60
fuzz: packages
	@Tests/Fuzzers/run.sh $(SECONDS) $(TARGET)

FORMATTED := Package.swift Sources Plugins Tests

lint: packages
	$(SWIFT) format lint --strict --parallel --recursive $(FORMATTED)

format: packages
	$(SWIFT) format --in-place --parallel --recursive $(FORMATTED)

bench: build
	@.build/release/baton-demo bench --picture Sources/Documentation/update.svg

# The pages have the programs' own help texts in them, and the day of the last commit.
MANUAL := .build/manual
manual:
	@[ -x $(RELEASE)/baton-demo ] || $(MAKE) build
	@SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || date +%s)} \
	    $(RELEASE)/baton-demo manual --programs $(RELEASE) --output $(MANUAL) >/dev/null

# Packages what was built: Swift is not in Debian, so a source package could not be built there. Everything that
# debhelper needs is put together in a tree of its own.
PACKAGING := Sources/Packaging
DEBTREE := .build/deb/baton
LINTIAN ?= lintian --allow-root --fail-on error,warning
DEBPACKAGES := debhelper dh-exec patchelf dpkg-dev lintian
deb: manual
	@$(call install-missing,$(DEBPACKAGES))
	@rm -rf .build/deb .build/packages && mkdir -p $(DEBTREE)/documentation .build/packages
	@cp -r $(PACKAGING)/debian $(DEBTREE)/
	@cp -r $(MANUAL) $(DEBTREE)/manual
	@cp -r $(PACKAGING)/examples $(DEBTREE)/
	@cp Sources/Documentation/*.md Sources/Documentation/*.svg $(DEBTREE)/documentation/
	@sed 's,Sources/Documentation/,,g' README.md >$(DEBTREE)/documentation/README.md
	@cp $(PACKAGING)/systemd/baton@.service $(DEBTREE)/debian/baton@.service
	@cp $(PACKAGING)/systemd/baton.sysusers $(DEBTREE)/debian/baton.sysusers
	@cp $(PACKAGING)/systemd/baton.udev $(DEBTREE)/debian/baton.udev
	@cp $(PACKAGING)/completion/baton.bash $(DEBTREE)/manual/
	@version="$(DEBVERSION)"; \
	[ -n "$$version" ] || version=$$($(RELEASE)/baton -version | sed 's/.*baton-//; s/+.*//')+git$$(git rev-list --count \
	    HEAD).$$(git rev-parse --short=10 HEAD) || exit 1; \
	printf 'baton (%s) unstable; urgency=medium\n\n  * Package the revision %s.\n\n -- %s  %s\n' "$$version" \
	    "$$(git rev-parse --short=10 HEAD)" "$$(sed -n 's/^Maintainer: //p' $(PACKAGING)/debian/control)" \
	    "$$(date -R -d @$$(git log -1 --format=%ct))" >$(DEBTREE)/debian/changelog
	@cd $(DEBTREE) && BATON_TREE="$(CURDIR)" SWIFT_LIBS="$(SWIFT_LIBS)" dpkg-buildpackage -b -us -uc >../build.log 2>&1 || \
	    { tail -20 ../build.log >&2; exit 1; }
	@mv .build/deb/*.deb .build/deb/*.changes .build/deb/*.buildinfo .build/packages/ && ls .build/packages/*.deb
	@$(LINTIAN) .build/packages/*.changes

# Installs what was built, and builds only if nothing was: `make` as a user, `make install` as root.
# Stripped of what only debuggers read, as that names the build tree.
install: manual
	@[ -x $(RELEASE)/baton ] || $(MAKE) build
	install -d $(INSTALLED)/bin $(INSTALLED)/lib/baton/modules $(INSTALLED)/lib/baton/swift \
	    $(INSTALLED)/lib/pkgconfig $(INSTALLED)/include/baton
	for f in baton baton-ctl baton-harness; do [ ! -x $(RELEASE)/$$f ] || \
	    install -s -m 755 $(RELEASE)/$$f $(INSTALLED)/bin/ || exit 1; done
	install -s -m 755 $(RELEASE)/libBatonRuntime.so $(RELEASE)/libBatonDevices.so $(INSTALLED)/lib/
	for f in $(wildcard $(MODULE_KINDS:%=$(RELEASE)/lib%-*.so)); do \
	    install -s -m 755 $$f $(INSTALLED)/lib/baton/modules/ || exit 1; done
	install -m 644 $(foreach m,$(RUNTIME_MODULES),$(RELEASE)/Modules/$m.swiftmodule $(RELEASE)/Modules/$m.swiftdoc) \
	    $(INSTALLED)/lib/baton/swift/
	install -m 644 Sources/Runtime/Sources/CBaton/include/*.h $(INSTALLED)/include/baton/
	install -d $(INSTALLED)/share/man/man1 $(INSTALLED)/share/man/man7 $(INSTALLED)/share/bash-completion/completions
	install -m 644 $(MANUAL)/*.1 $(INSTALLED)/share/man/man1/
	install -m 644 $(MANUAL)/*.7 $(INSTALLED)/share/man/man7/
	install -m 644 $(PACKAGING)/completion/baton.bash $(INSTALLED)/share/bash-completion/completions/baton
	for p in baton-ctl baton-harness; do install -m 644 $(MANUAL)/$$p.bash \
	    $(INSTALLED)/share/bash-completion/completions/$$p || exit 1; done
	install -m 644 Sources/Runtime/Sources/CBaton/installed.modulemap $(INSTALLED)/include/baton/module.modulemap
	version=$$($(RELEASE)/baton -version | sed 's/.*baton-//; s/+.*//') && \
	    sed "s/@VERSION@/$$version/" Sources/Runtime/baton.pc.in >$(INSTALLED)/lib/pkgconfig/baton.pc

clean:
	rm -rf .build .build-address .build-undefined .build-thread Sources/Runtime/.build .cache
