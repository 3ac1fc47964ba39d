import BatonRuntime
import CBaton
import Foundation

extension MonitorConnection {
    /// Has the VMM save its guest to a file that this program opens: the VM's sandbox need not have it. It appears under
    /// its name when it is whole, and belongs to whom its directory does.
    ///
    /// A VMM that takes no descriptors, as it is older or its monitor is no unix socket, and one for whose directory this
    /// program has no rights, opens the file itself.
    /// - Parameter path: absolute.
    func save(to path: String, mode: String) throws {
        func command(_ name: String) throws {
            try execute("cpr-save", ["filename": .string(name), "mode": .string(mode)])
        }
        guard isUnixSocket, let file = try? WholeFile(path), let set = try give(file.fd) else {
            return try command(path)
        }
        var status = stat()
        if geteuid() == 0, stat(FD.directory(of: path), &status) == 0 {
            guard fchown(file.fd, status.st_uid, status.st_gid) == 0 else {
                throw VMMError.system("fchown of '\(path)'")
            }
        }
        do {
            try command("/dev/fdset/\(set)")
        } catch let error as VMMError {
            _ = try? execute("remove-fd", ["fdset-id": .int(set)])
            throw error
        }
        try execute("remove-fd", ["fdset-id": .int(set)])
        try file.commit(durable: true)
    }

    /// - Returns: the number of the set that the VMM has put the descriptor into; nil from a VMM without such sets.
    private func give(_ descriptor: Int32) throws -> Int64? {
        do {
            return try execute("add-fd", passing: descriptor).objectValue?["fdset-id"]?.intValue
        } catch let error as VMMError where error.message == "The command add-fd has not been found" {
            return nil
        }
    }
}
