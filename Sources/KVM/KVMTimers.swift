import BatonRuntime
import CKVM

/// The 8254 with three channels, and port 0x61.
final class KVMPIT: KVMSystemDevice, Device {
    let stateName = "pit"
    private var initial = kvm_pit_state2()

    override init(_ accelerator: KVMAccelerator) {
        super.init(accelerator)
        vm.call(CKVM_GET_PIT2, &initial)
    }

    func reset() { set(initial) }

    private func set(_ state: kvm_pit_state2) {
        var state = state
        check(vm.call(CKVM_SET_PIT2, &state), "KVM_SET_PIT2")
    }

    func save(to writer: inout StateWriter) {
        var state = kvm_pit_state2()
        check(vm.call(CKVM_GET_PIT2, &state), "KVM_GET_PIT2")
        let now = EventLoop.now
        let channels = [state.channels.0, state.channels.1, state.channels.2]
        for (place, channel) in channels.enumerated() {
            writer.put(
                "channel\(place)",
                [
                    UInt64(channel.count), UInt64(channel.latched_count), UInt64(channel.count_latched),
                    UInt64(channel.status_latched), UInt64(channel.status), UInt64(channel.read_state),
                    UInt64(channel.write_state), UInt64(channel.write_latch), UInt64(channel.rw_mode),
                    UInt64(channel.mode), UInt64(channel.bcd), UInt64(channel.gate),
                ])
        }
        // How long ago they began to count, in nanoseconds.
        writer.put("ages", channels.map { UInt64(max(0, now &- $0.count_load_time)) })
        writer.put("flags", UInt64(state.flags))
    }

    /// The highest values of the fields of a channel.
    private static let limits: [UInt64] = [
        0x10000, 0xffff, 4, 1, 255, 4, 4, 255, 3, 5, 1, 1,
    ]
    /// A mode that nobody has chosen yet, in KVM.
    private static let noMode: UInt64 = 0xff

    func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        var channels: [[UInt64]] = []
        let count = KVMPIT.limits.count
        for place in 0..<3 {
            let values = try reader.array("channel\(place)", count: count...count)
            var checked = values
            if values[9] == KVMPIT.noMode { checked[9] = 0 }
            guard values[0] > 0, zip(checked, KVMPIT.limits).allSatisfy({ $0 <= $1 }) else {
                throw VMMError("field 'channel\(place)' of section '\(reader.section)' is out of range")
            }
            channels.append(values)
        }
        let ages = try reader.array("ages", count: 3...3)
        guard ages.allSatisfy({ $0 <= UInt64(Int64.max) }) else {
            throw VMMError("field 'ages' of section '\(reader.section)' is out of range")
        }
        // KVM_PIT_FLAGS_HPET_LEGACY and KVM_PIT_FLAGS_SPEAKER_DATA_ON.
        let flags = UInt32(try reader.unsigned("flags", in: 0...3))
        try reader.finish()
        return { [self] in
            var state = kvm_pit_state2()
            state.flags = flags
            let now = EventLoop.now
            let made = zip(channels, ages).map { KVMPIT.channel($0, begin: now &- Int64($1)) }
            state.channels = (made[0], made[1], made[2])
            set(state)
        }
    }

    private static func channel(_ values: [UInt64], begin: Int64) -> kvm_pit_channel_state {
        let bytes = values.map { UInt8(truncatingIfNeeded: $0) }
        var channel = kvm_pit_channel_state()
        (channel.count, channel.latched_count) = (UInt32(values[0]), UInt16(values[1]))
        (channel.count_latched, channel.status_latched, channel.status) = (bytes[2], bytes[3], bytes[4])
        (channel.read_state, channel.write_state, channel.write_latch) = (bytes[5], bytes[6], bytes[7])
        (channel.rw_mode, channel.mode, channel.bcd, channel.gate) = (bytes[8], bytes[9], bytes[10], bytes[11])
        channel.count_load_time = begin
        return channel
    }
}

/// KVM's clock, which it writes to guest memory. It goes on while the VM is stopped or updated, as the time-stamp
/// counter does; when the host has been rebooted meanwhile, both go on from where they were and by the time of day that
/// has passed (`GuestClock.gap`).
final class KVMClock: KVMSystemDevice, Device {
    let stateName = "kvmclock"

    func reset() { set(0) }

    /// Tells watchdogs of the guest that it has not run for a while.
    func resume() { for cpu in accelerator.virtualCPUs { cpu.file.call(CKVM_KVMCLOCK_CTRL) } }

    func save(to writer: inout StateWriter) {
        let (clock, time) = sample()
        writer.put("clock", clock)
        writer.put("host-time", UInt64(time))
        writer.put("host-boot", HostBoot.id)
    }

    func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let limit = UInt64(Int64.max / 2)
        let clock = try reader.unsigned("clock", in: 0...limit)
        let hostTime = Int64(try reader.unsigned("host-time", in: 0...limit))
        let sameBoot = try reader.string("host-boot") == HostBoot.id && !HostBoot.id.isEmpty
        try reader.finish()
        return { [self] in
            guard sameBoot else { return set(clock &+ UInt64(max(0, accelerator.clock.gap))) }
            // A guest compares this clock with its time-stamp counter: what setting it takes is made good.
            var lead: Int64 = 0
            for _ in 0..<4 {
                set(UInt64(max(0, Int64(clock) &+ ckvm_raw_time() &- hostTime &+ lead)))
                let (now, time) = sample()
                let error = Int64(truncatingIfNeeded: now) &- Int64(clock) &- (time &- hostTime)
                guard error.magnitude > KVMClock.precision else { return }
                lead &-= error
            }
        }
    }

    /// Nanoseconds by which it may be wrong.
    private static let precision: UInt64 = 1000

    private func set(_ clock: UInt64) {
        var data = kvm_clock_data()
        data.clock = clock
        check(vm.call(CKVM_SET_CLOCK, &data), "KVM_SET_CLOCK")
    }

    /// The clock, and when that was by CLOCK_MONOTONIC_RAW, which it follows; in nanoseconds.
    private func sample() -> (clock: UInt64, time: Int64) {
        var best: (clock: UInt64, time: Int64, width: Int64) = (0, 0, .max)
        for _ in 0..<3 where best.width > 2 * Int64(KVMClock.precision) {
            var data = kvm_clock_data()
            let before = ckvm_raw_time()
            check(vm.call(CKVM_GET_CLOCK, &data), "KVM_GET_CLOCK")
            let width = ckvm_raw_time() - before
            if width < best.width { best = (data.clock, before + width / 2, width) }
        }
        return (best.clock, best.time)
    }
}
