import BatonBase
import BatonCPR
import CBaton
import Glibc

// The functions of baton-module.h for modes and memory backends.

// MARK: Modes

@_cdecl("baton_ram_count")
public func foreignRAMCount(_ host: OpaquePointer?) -> UInt32 {
    UInt32(truncatingIfNeeded: ForeignModule.find(host)?.cpr?.memory.blocks.count ?? 0)
}

@_cdecl("baton_ram_block")
public func foreignRAMBlock(
    _ host: OpaquePointer?, _ index: UInt32, _ block: UnsafeMutablePointer<baton_ram_block>?
) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        guard let block, let blocks = module.cpr?.memory.blocks, Int(index) < blocks.count else {
            throw VMMError("there is no RAM block \(index)")
        }
        let found = blocks[Int(index)]
        block.pointee = baton_ram_block(
            name: module.lend(found.name), length: UInt64(found.usedLength), fd: found.fd, shared: found.shared,
            persistent: found.isPersistent)
    }
}

@_cdecl("baton_argument")
public func foreignArgument(_ host: OpaquePointer?, _ index: UInt32) -> UnsafePointer<CChar>? {
    guard let module = ForeignModule.find(host), let arguments = module.arguments, Int(index) < arguments.count else {
        return nil
    }
    return module.lend(arguments[Int(index)])
}

@_cdecl("baton_handover")
public func foreignHandover(_ host: OpaquePointer?) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        guard let cpr = module.cpr, let mode = module.mode, let arguments = module.arguments else {
            throw VMMError("baton_handover is for a mode's exec only")
        }
        try Handover.exec(arguments, mode: mode, cpr: cpr)
    }
}

@_cdecl("baton_handover_to")
public func foreignHandoverTo(_ host: OpaquePointer?, _ fd: Int32) -> Int32 {
    guard let module = ForeignModule.find(host) else {
        close(fd)
        return 1
    }
    return module.attempt { () throws(VMMError) in
        guard let cpr = module.cpr, let mode = module.mode, module.isConnecting else {
            close(fd)
            throw VMMError("baton_handover_to is for a mode's connect only")
        }
        try Handover.connect(fd, mode: mode, cpr: cpr)
    }
}

@_cdecl("baton_connect")
public func foreignConnect(_ host: OpaquePointer?, _ path: UnsafePointer<CChar>?, _ peer: Int64) -> Int32 {
    descriptor(host) { () throws(VMMError) in
        guard (-1..<Int64(UInt32.max)).contains(peer) else { throw VMMError("\(peer) is no user") }
        return try HandoverChannel.connect(try foreignText(path), peer: peer < 0 ? nil : UInt32(peer))
    }
}

@_cdecl("baton_receive")
public func foreignReceive(_ host: OpaquePointer?, _ path: UnsafePointer<CChar>?) -> Int32 {
    descriptor(host) { () throws(VMMError) in try HandoverChannel.accept(try foreignText(path)) }
}

@_cdecl("baton_vm_name")
public func foreignVMName(_ host: OpaquePointer?) -> UnsafePointer<CChar>? {
    guard let module = ForeignModule.find(host), let name = module.cpr?.vm.name else { return nil }
    return module.lend(name)
}

@_cdecl("baton_vm_uuid")
public func foreignVMUUID(_ host: OpaquePointer?) -> UnsafePointer<CChar>? {
    guard let module = ForeignModule.find(host), let uuid = module.cpr?.vm.givenUUID else { return nil }
    return module.lend(uuid)
}

@_cdecl("baton_found")
public func foreignFound(
    _ host: OpaquePointer?, _ state: Int32, _ checkpoint: Int32, _ memory: UnsafePointer<Int32>?, _ count: UInt32,
    _ place: UnsafePointer<CChar>?
) -> Int32 {
    let fds = Array(UnsafeBufferPointer(start: memory, count: memory == nil ? 0 : Int(count)))
    let guest = KeptGuest(state: state, checkpoint: checkpoint, memory: fds)
    guard let module = ForeignModule.find(host) else {
        guest.closeAll()
        return 1
    }
    return module.attempt { () throws(VMMError) in
        guard module.isFinding, module.found == nil else {
            guest.closeAll()
            throw VMMError("baton_found is for a mode's find only, once")
        }
        module.found = guest
        if let place { module.found?.place = try foreignText(place) }
    }
}

/// - Returns: what `body` does, or -1 after its failure was noted.
private func descriptor(_ host: OpaquePointer?, _ body: () throws(VMMError) -> Int32) -> Int32 {
    guard let module = ForeignModule.find(host) else { return -1 }
    var fd: Int32 = -1
    _ = module.attempt { () throws(VMMError) in fd = try body() }
    return fd
}

// MARK: Memory backends

/// The options of the object that is being made.
private func options(_ module: ForeignModule) throws(VMMError) -> KeyValueOptions {
    guard let options = module.options else { throw VMMError("options are for a memory backend's check and make only") }
    return options
}

@_cdecl("baton_option")
public func foreignOption(_ host: OpaquePointer?, _ key: UnsafePointer<CChar>?) -> UnsafePointer<CChar>? {
    guard let module = ForeignModule.find(host), let options = module.options, let key = try? foreignText(key),
        let value = try? options.string(key), !value.utf8.contains(0)
    else { return nil }
    return module.lend(value)
}

@_cdecl("baton_option_size")
public func foreignOptionSize(
    _ host: OpaquePointer?, _ key: UnsafePointer<CChar>?, _ bytes: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        if let value = try options(module).size(try foreignText(key)) { bytes?.pointee = value }
    }
}

@_cdecl("baton_option_bool")
public func foreignOptionBool(
    _ host: OpaquePointer?, _ key: UnsafePointer<CChar>?, _ value: UnsafeMutablePointer<Bool>?
) -> Int32 {
    guard let module = ForeignModule.find(host) else { return 1 }
    return module.attempt { () throws(VMMError) in
        if let given = try options(module).bool(try foreignText(key)) { value?.pointee = given }
    }
}
