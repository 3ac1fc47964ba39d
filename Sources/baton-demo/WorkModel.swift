/// Knows what a guest's checksum must be after any number of steps, so that a
/// single step lost, doubled or miscalculated is noticed from outside.
protocol WorkModel: AnyObject {
    /// The checksum after `count` steps. Counts are asked for in any order.
    func sum(after count: UInt64) -> UInt64
}

/// Repeats the work of Tests/Guests/demo/work.h.
final class DemoModel: WorkModel {
    static let pages: UInt64 = 1024
    static let pageWords: UInt64 = 512
    static let stepsPerRecord: UInt64 = 64
    static let records: UInt64 = 2048
    static let recordWords = 512
    static let recordMagic: UInt64 = 0x4345_5243_4e54_4142

    private var step: UInt64 = 0
    private var current: UInt64 = 0
    /// The checksum at every multiple of `stepsPerRecord`; the guest reports at no other count.
    private var history: [UInt64] = [0]

    func sum(after count: UInt64) -> UInt64 {
        while step < count { advance() }
        let index = count / Self.stepsPerRecord
        return count % Self.stepsPerRecord == 0 ? history[Int(index)] : 0
    }

    private func advance() {
        step += 1
        let page = step % Self.pages, round = step / Self.pages
        var sum = current
        for place in page &* Self.pageWords..<(page &+ 1) &* Self.pageWords {
            sum = (sum &<< 7 | sum &>> 57) ^ Self.mix(place, round)
        }
        current = sum
        if step % Self.stepsPerRecord == 0 { history.append(sum) }
    }

    @inline(__always)
    static func mix(_ a: UInt64, _ b: UInt64) -> UInt64 {
        var x = a &* 0x9e37_79b9_7f4a_7c15 ^ b &* 0xd1b5_4a32_d192_ed03
        x ^= x &>> 29
        x = x &* 0xbf58_476d_1ce4_e5b9
        return x ^ x &>> 32
    }
}

/// The sequence of Tests/Guests/counter, whose elements can be had without
/// going through those before: a power of the step, which is affine.
final class CounterModel: WorkModel {
    func sum(after count: UInt64) -> UInt64 {
        var multiplier: UInt64 = 6_364_136_223_846_793_005, increment: UInt64 = 1_442_695_040_888_963_407
        var total: (multiplier: UInt64, increment: UInt64) = (1, 0)
        var left = count
        while left > 0 {
            if left & 1 == 1 {
                total.increment = total.increment &* multiplier &+ increment
                total.multiplier = total.multiplier &* multiplier
            }
            increment = increment &* (multiplier &+ 1)
            multiplier = multiplier &* multiplier
            left >>= 1
        }
        return total.increment
    }
}
