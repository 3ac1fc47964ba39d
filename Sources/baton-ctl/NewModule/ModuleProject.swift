/// The files of one new module.
struct ModuleProject {
    struct File {
        var name: String
        var text: String
        var isExecutable = false
    }

    let kind: NewModule.Kind
    let language: NewModule.Language
    let name: String
    /// Where Baton is installed.
    let prefix: String

    var fullName: String { "\(kind.rawValue)-\(name)" }
    /// For Swift's types: `fd-store` becomes `FdStore`.
    var typeName: String { name.split(separator: "-").map { $0.prefix(1).uppercased() + $0.dropFirst() }.joined() }

    var files: [File] { [source, makefile, test, readme] }

    var source: File {
        switch language {
        case .c: File(name: "module.c", text: cSource)
        case .swift: File(name: "module.swift", text: swiftSource)
        }
    }

    private var makefile: File {
        let build =
            switch language {
            case .c:
                "$(CC) -std=c11 -Wall -Wextra -O2 -fPIC -fvisibility=hidden -shared $(CFLAGS) \\\n"
                    + "\t    $$($(PKG_CONFIG) --cflags baton) -Wl,-soname,$(MODULE) -o $@ module.c"
            case .swift:
                "$(SWIFTC) -O -emit-library -module-name \(typeName)Module \\\n"
                    + "\t    $$($(PKG_CONFIG) --variable=swiftflags baton) -Xlinker -soname=$(MODULE) "
                    + "-o $@ module.swift"
            }
        let compiler =
            language == .swift
            ? "SWIFTC ?= $(shell PATH=\"$$PATH:/opt/swift/usr/bin\" command -v swiftc)\n" : ""
        return File(
            name: "Makefile",
            text: """
                # Builds the module against the Baton in $(BATON).
                #
                #   make            builds $(MODULE)
                #   make test       loads it, and puts it through baton-harness
                #   make install    puts it where Baton finds it by its name
                BATON ?= \(prefix)
                export PKG_CONFIG_PATH := $(BATON)/lib/pkgconfig:$(PKG_CONFIG_PATH)
                PKG_CONFIG ?= pkg-config
                \(compiler)MODULE := lib\(fullName).so

                $(MODULE): \(source.name) Makefile
                \t\(build)

                .PHONY: test install clean
                test: $(MODULE)
                \t./test.sh $(BATON)/bin ./$(MODULE)

                install: $(MODULE)
                \tinstall -m 755 $(MODULE) $(DESTDIR)$$($(PKG_CONFIG) --variable=moduledir baton)/

                clean:
                \trm -f $(MODULE)

                """)
    }

    private var test: File {
        let harness =
            switch kind {
            case .mode: "--mode \(name)"
            case .preserver: "--mode restart --preserver \(name)"
            case .memoryBackend: "--mode restart --memory-backend memory-backend-\(name)"
            }
        let use =
            switch kind {
            case .mode: "-cpr-enable \(name) -machine virt"
            case .preserver: "-machine virt"
            case .memoryBackend:
                "-m 16M -object memory-backend-\(name),id=ram,size=16M -machine virt,memory-backend=ram"
            }
        return File(
            name: "test.sh",
            text: """
                #!/bin/sh
                # Tests the module: test.sh DIRECTORY-OF-BATON MODULE
                set -e
                bin=$1
                module=$2

                # It loads, and a machine can be made with it.
                "$bin/baton" -module "$module" -module help | grep -q '^  \(fullName) '
                tree=$(mktemp)
                "$bin/baton" -module "$module" \(use),dumpdtb="$tree"
                rm "$tree"
                echo "loads: $module"

                # It keeps what it promises over updates, and loses nothing when one fails.
                exec "$bin/baton-harness" \(harness) --module "$module"

                """,
            isExecutable: true)
    }

    private var readme: File {
        let what =
            switch kind {
            case .preserver:
                "a preserver: it keeps a kind of file descriptor, and what is behind it, over an update of the VMM"
            case .mode: "a CPR mode: a way to replace the VMM under its guest"
            case .memoryBackend: "a memory backend: it makes guest memory"
            }
        let use =
            switch kind {
            case .preserver:
                "    baton -module ./lib\(fullName).so …\n\nThe QMP command `query-\(name)` tells what it keeps."
            case .mode: "    baton -module ./lib\(fullName).so -cpr-enable \(name) …"
            case .memoryBackend:
                "    baton -module ./lib\(fullName).so -object memory-backend-\(name),id=ram,size=512M,share=on \\\n"
                    + "        -machine virt,memory-backend=ram …"
            }
        let fits =
            switch language {
            case .swift:
                "The module fits just the Baton that it was built against; any other refuses it and says\n"
                    + "which it was built for. Run `make` again after Baton has been updated."
            case .c: "The module fits every Baton with the same BATON_MODULE_ABI (see baton-module.h)."
            }
        return File(
            name: "README.md",
            text: """
                # \(fullName)

                A module for the Baton virtual machine monitor: \(what).

                    make            # builds lib\(fullName).so
                    make test       # loads it, and puts it through Baton's conformance suite

                \(fits)

                Use it:

                \(use)

                `make install` (as the owner of \(prefix)) puts it where Baton finds it by its name. A
                module's file and all directories above it must belong to root or the user, and be writable
                by no one else.

                Everything is in `\(source.name)`. The contract is in Baton's documents `modules.md` and
                `preservers.md`.

                """)
    }
}
