import BatonBase
import BatonMachine
import BatonQMP
import CBaton
import Glibc

// The functions of baton-module.h that every foreign module may call. C code
// gives the arguments, so each pointer may be null and each text malformed.

private let noText = VMMError("a text is missing, or is not UTF-8")

/// A C string as a checked one.
func foreignText(_ text: UnsafePointer<CChar>?) throws(VMMError) -> String {
    guard let text else { throw noText }
    let bytes = UnsafeRawBufferPointer(start: text, count: strlen(text))
    guard let result = String(validating: bytes, as: UTF8.self) else { throw noText }
    return result
}

/// A C string for a message: whatever it is.
private func anyText(_ text: UnsafePointer<CChar>?) -> String { text.map { String(cString: $0) } ?? "" }

@_cdecl("baton_fail")
public func foreignFail(_ host: OpaquePointer?, _ text: UnsafePointer<CChar>?) -> Int32 {
    _ = ForeignModule.find(host)?.fail(VMMError(anyText(text)))
    return 1
}

@_cdecl("baton_fail_errno")
public func foreignFailErrno(_ host: OpaquePointer?, _ text: UnsafePointer<CChar>?, _ number: Int32) -> Int32 {
    _ = ForeignModule.find(host)?.fail(.system(anyText(text), errno: number))
    return 1
}

@_cdecl("baton_log")
public func foreignLog(_ host: OpaquePointer?, _ text: UnsafePointer<CChar>?) {
    guard let module = ForeignModule.find(host) else { return }
    Log.trace("module_log", "\(module.name) \(anyText(text))")
}

@_cdecl("baton_report")
public func foreignReport(_ host: OpaquePointer?, _ severity: Int32, _ text: UnsafePointer<CChar>?) {
    guard let module = ForeignModule.find(host) else { return }
    let message = "\(module.name): \(anyText(text))"
    switch severity {
    case BATON_INFO: Report.info(message)
    case BATON_WARNING: Report.warning(message)
    default: Report.error(VMMError(message))
    }
}

@_cdecl("baton_is_trial")
public func foreignIsTrial(_ host: OpaquePointer?) -> Bool { ForeignModule.find(host)?.cpr?.isTrial ?? false }

// MARK: Descriptors

/// The descriptors of the VM that the module belongs to.
private func descriptors(_ module: ForeignModule) throws(VMMError) -> PreservedFDs {
    guard let cpr = module.cpr else { throw VMMError("there is no VM whose descriptors could be kept") }
    return cpr.fds
}

private func checkedFD(_ fd: Int32) throws(VMMError) {
    guard fd > 2, FD.isOpen(fd) else { throw VMMError("\(fd) is not a descriptor that can be kept") }
}

@_cdecl("baton_save_fd")
public func foreignSaveFD(_ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ id: Int32, _ fd: Int32) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        try checkedFD(fd)
        try descriptors(module).save(try module.fdName(try foreignText(name)), id: Int(id), fd)
    }
}

@_cdecl("baton_resave_fd")
public func foreignResaveFD(_ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ id: Int32, _ fd: Int32) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        try checkedFD(fd)
        try descriptors(module).resave(try module.fdName(try foreignText(name)), id: Int(id), fd)
    }
}

@_cdecl("baton_find_fd")
public func foreignFindFD(_ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ id: Int32) -> Int32 {
    guard let module = ForeignModule.find(host), let text = try? foreignText(name),
        let name = try? module.fdName(text)
    else { return -1 }
    return module.cpr?.fds.find(name, id: Int(id)) ?? -1
}

@_cdecl("baton_delete_fd")
public func foreignDeleteFD(_ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ id: Int32) {
    guard let module = ForeignModule.find(host), let text = try? foreignText(name),
        let name = try? module.fdName(text)
    else { return }
    module.cpr?.fds.delete(name, id: Int(id))
}

@_cdecl("baton_watch")
public func foreignWatch(_ host: OpaquePointer?, _ fd: Int32, _ events: UInt32) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        guard fd > 2, FD.isOpen(fd) else { throw VMMError("\(fd) is not a descriptor that can be watched") }
        try module.watch(fd, events)
    }
}

@_cdecl("baton_unwatch")
public func foreignUnwatch(_ host: OpaquePointer?, _ fd: Int32) { ForeignModule.find(host)?.unwatch(fd) }

// MARK: State

@_cdecl("baton_put_number")
public func foreignPutNumber(_ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ value: UInt64) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        let name = try foreignText(name)
        try module.put(name) { $0.put(name, value) }
    }
}

@_cdecl("baton_put_string")
public func foreignPutString(
    _ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ value: UnsafePointer<CChar>?
) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        let name = try foreignText(name)
        let value = try foreignText(value)
        try module.put(name) { $0.put(name, value) }
    }
}

@_cdecl("baton_put_bytes")
public func foreignPutBytes(
    _ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ data: UnsafeRawPointer?, _ size: Int
) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        let name = try foreignText(name)
        guard data != nil || size == 0, (0...64 << 20).contains(size) else {
            throw VMMError("field '\(name)' must have 0 to \(64 << 20) bytes, not \(UInt(bitPattern: size))")
        }
        let bytes = Array(UnsafeRawBufferPointer(start: data, count: size))
        try module.put(name) { $0.put(name, bytes: bytes) }
    }
}

@_cdecl("baton_has")
public func foreignHas(_ host: OpaquePointer?, _ name: UnsafePointer<CChar>?) -> Bool {
    guard let module = ForeignModule.find(host), let name = try? foreignText(name) else { return false }
    return (try? module.inherited())?.has(name) ?? false
}

/// Reads one field.
private func get<T>(
    _ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ store: UnsafeMutablePointer<T>?,
    _ read: (StateReader, String, ForeignModule) throws(VMMError) -> T
) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        let name = try foreignText(name)
        guard let store else { throw VMMError("there is no place for field '\(name)'") }
        guard let reader = try module.inherited() else {
            throw VMMError("field '\(name)' is missing: the process before left no state")
        }
        store.pointee = try read(reader, name, module)
    }
}

@_cdecl("baton_get_number")
public func foreignGetNumber(
    _ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ limit: UInt64, _ value: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    get(host, name, value) { reader, name, _ throws(VMMError) in try reader.unsigned(name, in: 0...limit) }
}

@_cdecl("baton_get_string")
public func foreignGetString(
    _ host: OpaquePointer?, _ name: UnsafePointer<CChar>?,
    _ value: UnsafeMutablePointer<UnsafePointer<CChar>?>?
) -> Int32 {
    get(host, name, value) { reader, name, module throws(VMMError) in
        let text = try reader.string(name)
        guard !text.utf8.contains(0) else { throw VMMError("field '\(name)' contains a zero byte") }
        return module.lend(text)
    }
}

@_cdecl("baton_get_bytes")
public func foreignGetBytes(
    _ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ data: UnsafeMutablePointer<UnsafeRawPointer?>?,
    _ size: UnsafeMutablePointer<Int>?
) -> Int32 {
    get(host, name, data) { reader, name, module throws(VMMError) in
        guard let size else { throw VMMError("there is no place for the size of field '\(name)'") }
        let bytes = try reader.bytes(name)
        size.pointee = bytes.count
        return UnsafeRawPointer(module.lend(bytes))
    }
}

// MARK: Blockers and events

@_cdecl("baton_add_blocker")
public func foreignAddBlocker(_ host: OpaquePointer?, _ reason: UnsafePointer<CChar>?) -> UInt32 {
    guard let module = ForeignModule.find(host) else { return 0 }
    var number: UInt32 = 0
    _ = module.attempt { () throws(VMMError) in
        let text = try foreignText(reason)
        guard !text.isEmpty else { throw VMMError("a blocker needs a reason") }
        number = try module.addBlocker(text)
    }
    return number
}

@_cdecl("baton_remove_blocker")
public func foreignRemoveBlocker(_ host: OpaquePointer?, _ blocker: UInt32) {
    ForeignModule.find(host)?.removeBlocker(blocker)
}

@_cdecl("baton_emit_event")
public func foreignEmitEvent(
    _ host: OpaquePointer?, _ name: UnsafePointer<CChar>?, _ data: UnsafePointer<CChar>?
) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        let name = try foreignText(name)
        guard let members = module.events[name] else {
            throw VMMError("the event '\(name)' is not in the module's table")
        }
        var object = JSONObject()
        if data != nil {
            guard let given = try JSON(parsing: Array(try foreignText(data).utf8)).objectValue else {
                throw VMMError("the data of event '\(name)' is not a JSON object")
            }
            object = given
        }
        do throws(VMMError) {
            try QMPArguments.check(object, against: members)
        } catch {
            throw error.prefixed("event '\(name)'")
        }
        module.cpr?.vm.emit(name, object)
    }
}
