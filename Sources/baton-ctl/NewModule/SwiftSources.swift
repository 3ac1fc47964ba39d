/// What `new-module --lang swift` writes.
extension ModuleProject {
    var swiftSource: String {
        switch kind {
        case .preserver: swiftPreserver
        case .mode: swiftMode
        case .memoryBackend: swiftMemoryBackend
        }
    }

    /// - Parameter register: what is done with `registrar`.
    private func query(_ register: String) -> String {
        """
        /// What the loader asks.
        @_cdecl("baton_module_query")
        public func query() -> UnsafeRawPointer {
            ModuleDescriptor.make(kind: "\(kind.rawValue)", name: "\(name)", version: "0.1") {
                registrar throws(VMMError) in
                \(register)
            }
        }
        """
    }

    private var swiftPreserver: String {
        let register = [
            "let preserver = try \(typeName)Preserver()", "try registrar.add(preserver)",
            "try registrar.add(preserver.queryCommand)",
        ]
        return """
            import BatonRuntime
            import Glibc

            \(query(register.joined(separator: "\n        ")))

            /// Keeps a memfd, and a count of updates, over updates of the VMM.
            final class \(typeName)Preserver: FdPreserver {
                let name = "\(name)"
                private let part = "module/\(fullName)"
                /// Ours.
                private var fd: Int32
                /// Updates that it has seen.
                private var updates: UInt64 = 0

                init() throws(VMMError) {
                    fd = try Mapping.createMemfd(name: "\(name)", length: Mapping.pageSize).release()
                }

                /// What happens in each step of an update. An error in `save` and
                /// `exec` ends it, and the guest goes on here.
                func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
                    // The memfd of the process before takes the place of a new one.
                    if let kept = cpr.fds.find(part), kept != fd {
                        close(fd)
                        fd = kept
                    }
                    switch phase {
                    case .survey, .exec:
                        // What is to be kept. A survey only asks, while the guest runs.
                        try cpr.fds.resave(part, fd)
                        var state = StateWriter()
                        state.put("updates", updates)
                        cpr.handOver(part, state)
                    case .load:
                        // In the new VMM. The old one may still have to go on: change
                        // nothing outside of this process.
                        if let state = try cpr.inherited?.part(part) {
                            updates = try state.unsigned("updates", in: 0...UInt64.max - 1) + 1
                        }
                    default:
                        break
                    }
                }

                /// QMP: `{"execute": "query-\(name)"}`
                var queryCommand: QMPCommand {
                    let result = QMPType.object(
                        name: "\(typeName)Status", members: [QMPMember("fd", .int), QMPMember("updates", .uint)])
                    return QMPCommand("query-\(name)", returns: result) { [unowned self] _ in
                        ["fd": .int(Int64(fd)), "updates": JSON(updates)]
                    }
                }
            }

            """
    }

    private var swiftMode: String {
        """
        import BatonRuntime

        \(query("try registrar.add(\(typeName)Mode())"))

        /// Executes the new VMM in this process, or hands the guest over to one that waits at a unix
        /// socket. Guest RAM and descriptors stay.
        final class \(typeName)Mode: CprMode {
            let name = "\(name)"
            let summary = "execute the new VMM in this process, or reach one at a socket"
            let promises: CprModePromises = [.samePID, .keepsConnections, .executes, .connects]
            /// `blockers` looks only at what is in memory. For a mode that reads files or
            /// asks others, leave this out: then Baton watches over it.
            let neverHangs = true
            /// Gives RAM without a backend of its own a memfd, so that it can stay.
            let allocatorHook: (any AllocatorHook)? = MemfdAllocator(hookName: "\(name)")

            /// Why an update is not possible now. Asked while the guest runs.
            func blockers(cpr: CprController) -> [VMMError] {
                cpr.memory.blocks.filter { !$0.isPreservable }
                    .map { VMMError("Memory region \\($0.name) is volatile.") }
            }

            /// Says what is to be executed: that happens when this has returned, beside
            /// the running guest.
            func exec(_ argv: [String], cpr: CprController) throws(VMMError) {
                try Handover.exec(argv, mode: self, cpr: cpr)
            }

            /// In the old VMM: reaches the new one at the path that `cpr-update` gives. The guest waits.
            func connect(_ channel: String, peer: UInt32?, cpr: CprController) throws(VMMError) {
                try Handover.connect(try HandoverChannel.connect(channel, peer: peer), mode: self, cpr: cpr)
            }

            /// In the new VMM: waits for the old one.
            func receive(_ channel: String, cpr: CprController) throws(VMMError) -> Int32 {
                try HandoverChannel.accept(channel)
            }
        }

        """
    }

    private var swiftMemoryBackend: String {
        """
        import BatonRuntime

        \(query("try registrar.add(\(typeName)Backend())"))

        /// Guest memory in a memfd, which /proc shows under the option `label=`.
        final class \(typeName)Backend: MemoryBackendType {
            let typeName = "\(fullName)"
            let summary = "memory in a memfd with a label"

            func makeBlock(
                _ request: RAMRequest, common: MemoryBackendProperties, options: KeyValueOptions, memory: GuestMemory
            ) throws(VMMError) -> RAMBlock {
                let label = try options.string("label") ?? request.name
                guard label.utf8.count <= 200 else { throw VMMError("'label' has more than 200 bytes") }
                // Not called when the VMM before has left memory of this name.
                return try memory.preservedBlock(request, shared: common.share ?? true, origin: typeName) {
                    () throws(VMMError) in try Mapping.createMemfd(name: label, length: request.maxLength).release()
                }
            }
        }

        """
    }
}
