module @backward {
  func.func public @main(%arg0: tensor<128x256xbf16>, %arg1: tensor<1024x256xbf16>, %arg2: tensor<1024x256xbf16>, %arg3: tensor<256x1024xbf16>, %arg4: tensor<128x1xf32>, %arg5: tensor<128x256xbf16>, %arg6: tensor<128x1024xbf16>, %arg7: tensor<128x1024xbf16>, %arg8: tensor<128x1024xbf16>, %arg9: tensor<128x256xbf16>) -> (tensor<256xbf16>, tensor<1024x256xbf16>, tensor<1024x256xbf16>, tensor<256x1024xbf16>) {
    %0 = stablehlo.dot_general %arg9, %arg3, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x256xbf16>, tensor<256x1024xbf16>) -> tensor<128x1024xbf16>
    %1 = stablehlo.convert %arg6 : (tensor<128x1024xbf16>) -> tensor<128x1024xf32>
    %2 = stablehlo.logistic %1 : tensor<128x1024xf32>
    %3 = stablehlo.multiply %1, %2 : tensor<128x1024xf32>
    %4 = stablehlo.convert %3 : (tensor<128x1024xf32>) -> tensor<128x1024xbf16>
    %5 = stablehlo.multiply %0, %4 : tensor<128x1024xbf16>
    %6 = stablehlo.dot_general %5, %arg2, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<1024x256xbf16>) -> tensor<128x256xbf16>
    %7 = stablehlo.multiply %0, %arg7 : tensor<128x1024xbf16>
    %8 = stablehlo.convert %7 : (tensor<128x1024xbf16>) -> tensor<128x1024xf32>
    %9 = stablehlo.multiply %8, %2 : tensor<128x1024xf32>
    %10 = stablehlo.constant dense<1.0> : tensor<128x1024xf32>
    %11 = stablehlo.subtract %10, %2 : tensor<128x1024xf32>
    %12 = stablehlo.multiply %1, %11 : tensor<128x1024xf32>
    %13 = stablehlo.add %12, %10 : tensor<128x1024xf32>
    %14 = stablehlo.multiply %9, %13 : tensor<128x1024xf32>
    %15 = stablehlo.convert %14 : (tensor<128x1024xf32>) -> tensor<128x1024xbf16>
    %16 = stablehlo.dot_general %15, %arg1, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<1024x256xbf16>) -> tensor<128x256xbf16>
    %17 = stablehlo.add %6, %16 : tensor<128x256xbf16>
    %18 = stablehlo.convert %17 : (tensor<128x256xbf16>) -> tensor<128x256xf32>
    %19 = stablehlo.convert %arg0 : (tensor<128x256xbf16>) -> tensor<128x256xf32>
    %20 = stablehlo.broadcast_in_dim %arg4, dims = [0, 1] : (tensor<128x1xf32>) -> tensor<128x256xf32>
    %21 = stablehlo.multiply %19, %20 : tensor<128x256xf32>
    %22 = stablehlo.multiply %18, %21 : tensor<128x256xf32>
    %23 = stablehlo.constant dense<0.0> : tensor<f32>
    %24 = stablehlo.reduce(%22 init: %23) applies stablehlo.add across dimensions = [0] : (tensor<128x256xf32>, tensor<f32>) -> tensor<256xf32>
    %25 = stablehlo.convert %24 : (tensor<256xf32>) -> tensor<256xbf16>
    %26 = stablehlo.dot_general %15, %arg5, contracting_dims = [0] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<128x256xbf16>) -> tensor<1024x256xbf16>
    %27 = stablehlo.dot_general %5, %arg5, contracting_dims = [0] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x1024xbf16>, tensor<128x256xbf16>) -> tensor<1024x256xbf16>
    %28 = stablehlo.dot_general %arg9, %arg8, contracting_dims = [0] x [0], precision = [DEFAULT, DEFAULT] : (tensor<128x256xbf16>, tensor<128x1024xbf16>) -> tensor<256x1024xbf16>
    return %25, %26, %27, %28 : tensor<256xbf16>, tensor<1024x256xbf16>, tensor<1024x256xbf16>, tensor<256x1024xbf16>
  }
}
